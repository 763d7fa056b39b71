-- Undoes 0004_users.sql: all users of the API are lost.
set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
do $$
begin
    if exists (select from outbox.migrations where version > 4) then
        raise exception 'Undo the later files first: see outbox.migrations.';
    end if;
end
$$;
delete from outbox.migrations where version = 4;

drop table outbox.users;
