-- Undoes 0001_ledger.sql.
set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
do $$
begin
    if exists (select from outbox.migrations where version > 1) then
        raise exception 'Undo the later files first: see outbox.migrations.';
    end if;
end
$$;

drop table outbox.migrations;

do $$
begin
    if obj_description(to_regnamespace('outbox'), 'pg_namespace') like '% Made by outbox/sql.' then
        drop schema outbox;
    end if;
end
$$;
