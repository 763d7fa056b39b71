-- Undoes 0006_roles.sql: nobody but the owner has any right left, and the capture runs as the owner. The roles are the
-- cluster's, and stay.
set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
do $$
begin
    if exists (select from outbox.migrations where version > 6) then
        raise exception 'Undo the later files first: see outbox.migrations.';
    end if;
end
$$;
delete from outbox.migrations where version = 6;

do $$
declare
    role name;
    kind text;
    generated regprocedure;
begin
    for generated in select p.oid from pg_catalog.pg_proc as p
        where p.pronamespace = 'outbox'::regnamespace and pg_catalog.pg_get_userbyid(p.proowner) = 'outbox_capture'
    loop
        execute pg_catalog.format('alter function %s owner to %I', generated, (
            select pg_catalog.pg_get_userbyid(c.relowner) from pg_catalog.pg_class as c
            where c.oid = 'outbox.outbox'::regclass
        ));
    end loop;
    for role in select r.rolname from pg_catalog.pg_roles as r
        where r.rolname in ('outbox_daemon', 'outbox_capture', 'outbox_api', 'outbox_reader')
    loop
        foreach kind in array array ['all tables in', 'all sequences in', 'all functions in', ''] loop
            execute pg_catalog.format('revoke all on %s schema outbox from %I', kind, role);
        end loop;
    end loop;
end
$$;

drop function outbox.grant_roles();
