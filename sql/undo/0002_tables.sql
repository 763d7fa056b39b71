-- Undoes 0002_tables.sql: all events, configs, deliveries and their history are lost.
set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
do $$
begin
    if exists (select from outbox.migrations where version > 2) then
        raise exception 'Undo the later files first: see outbox.migrations.';
    end if;
end
$$;
delete from outbox.migrations where version = 2;

drop function outbox.make_partitions(integer);
drop function outbox.tell_of_config(uuid, text, text);
drop table outbox.attempts;
drop table outbox.deliveries;
drop table outbox.config_state;
drop table outbox.postback_configs;
drop function outbox.keep_former_resource();
drop table outbox.events;
drop table outbox.outbox;
drop type outbox.change;
