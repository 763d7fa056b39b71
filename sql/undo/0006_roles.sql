-- Undoes 0006_roles.sql: nobody but the owner has any right left. The roles are the cluster's, and stay.
set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
delete from outbox.migrations where version = 6;

do $$
declare
    role name;
    kind text;
begin
    for role in select r.rolname from pg_catalog.pg_roles as r
        where r.rolname in ('outbox_daemon', 'outbox_api', 'outbox_reader')
    loop
        foreach kind in array array ['all tables in', 'all sequences in', 'all functions in', ''] loop
            execute pg_catalog.format('revoke all on %s schema outbox from %I', kind, role);
        end loop;
    end loop;
end
$$;

drop function outbox.grant_roles();
