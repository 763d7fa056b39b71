-- Undoes 0005_retention.sql. What was dropped stays dropped.
set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
delete from outbox.migrations where version = 5;

drop function outbox.prune_default(text, timestamptz, timestamptz, bigint, integer, boolean);
drop function outbox.prune_partition(text, timestamptz, timestamptz, boolean);
drop function outbox.partitions();
