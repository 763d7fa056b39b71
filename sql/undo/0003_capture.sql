-- Undoes 0003_capture.sql: every attached table is detached, every expand unregistered.
set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
do $$
begin
    if exists (select from outbox.migrations where version > 3) then
        raise exception 'Undo the later files first: see outbox.migrations.';
    end if;
end
$$;
delete from outbox.migrations where version = 3;

-- One by one: detaching a parent detaches its partitions, so each is looked at again.
do $$
declare
    attached regclass;
    orphan regprocedure;
    expand record;
begin
    loop
        select a.relation into attached from outbox.attachments a limit 1;
        exit when not found;
        perform outbox.detach(attached);
    end loop;
    for expand in select e.resource, e.name from outbox.expands e loop
        perform outbox.unregister_expand(expand.resource, expand.name);
    end loop;
    -- The function of a table that was dropped while attached.
    for orphan in
        select p.oid::regprocedure from pg_catalog.pg_proc p
        where p.pronamespace = 'outbox'::regnamespace and p.proname like 'capture\_%'
    loop
        execute pg_catalog.format('drop function %s', orphan);
    end loop;
end
$$;

drop function outbox.unregister_expand(text, text);
drop function outbox.register_expand(text, text, regproc);
drop function outbox.write_expands(text, json);
drop view outbox.expands;
drop function outbox.detach(regclass);
drop view outbox.attachments;
drop function outbox.attach(regclass, text, text, text, text, regproc, text[], text);
drop function outbox.expand_function(text);
drop function outbox.give_to_capture(regprocedure);
drop function outbox.owner_of_capture();
drop function outbox.read_condition(regclass, text);
drop function outbox.record_expression(regclass, text, regproc, boolean, text[]);
drop sequence outbox.doorbell;
