-- Undoes 0001_ledger.sql.
set local lock_timeout = '5s';

drop table outbox.migrations;

do $$
begin
    if obj_description(to_regnamespace('outbox'), 'pg_namespace') like '% Made by outbox/sql.' then
        drop schema outbox;
    end if;
end
$$;
