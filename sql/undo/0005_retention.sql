-- Undoes 0005_retention.sql. What was dropped stays dropped.
set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
do $$
begin
    if exists (select from outbox.migrations where version > 5) then
        raise exception 'Undo the later files first: see outbox.migrations.';
    end if;
end
$$;
delete from outbox.migrations where version = 5;

drop function outbox.prune_default(text, timestamptz, timestamptz, bigint, integer, boolean);
drop function outbox.prune_partition(text, timestamptz, timestamptz, boolean);
drop function outbox.partitions();
