-- Optional, once in a cluster: five roles without login, four of them for those who log in to be members of. Again does
-- no harm.
--
--   psql -X -v ON_ERROR_STOP=1 -f sql/roles.sql
--
-- Needs CREATEROLE. What each role may do stands in outbox.grant_roles(), which the migrations make and call; where the
-- schema is there already, it is called here. Whoever is not the schema's owner is told to have the owner call it.
do $$
declare
    wanted text;
    owner name;
begin
    foreach wanted in array array [
        'outbox_owner', 'outbox_capture', 'outbox_daemon', 'outbox_api', 'outbox_reader'
    ] loop
        if pg_catalog.to_regrole(wanted) is null then
            execute pg_catalog.format('create role %I nologin', wanted);
        end if;
    end loop;

    -- The capture's functions run as outbox_capture. Only a member can give functions to a role.
    if not pg_catalog.pg_has_role('outbox_owner', 'outbox_capture', 'member') then
        grant outbox_capture to outbox_owner;
    end if;

    -- Not to_regprocedure(), which fails for whoever may not use the schema.
    select pg_catalog.pg_get_userbyid(p.proowner) into owner
    from pg_catalog.pg_proc as p
    inner join pg_catalog.pg_namespace as n on p.pronamespace = n.oid
    where n.nspname = 'outbox' and p.proname = 'grant_roles';
    if owner is null then
        raise notice 'No outbox.grant_roles() in this database yet, as is right before the first migration: that will grant.';
    elsif pg_catalog.pg_has_role(owner, 'usage') then
        perform outbox.grant_roles();
    else
        raise notice 'Have % say: select outbox.grant_roles()', owner;
    end if;
end
$$;
