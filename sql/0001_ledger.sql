-- The schema and the ledger of what was applied to it.
--
-- Apply in one transaction:  psql -X -v ON_ERROR_STOP=1 -1 -f sql/0001_ledger.sql
-- Needs: the right to create a schema in this database, or an empty schema "outbox" that you own.

-- A cursor can only be declared in a transaction: without -1 this stops here, before anything was done.
declare needs_a_transaction cursor for select 1;
set local lock_timeout = '5s';

-- Asked first, because CREATE SCHEMA IF NOT EXISTS wants the right to create one even where there is one.
-- The comment tells the undo file that the schema is ours to drop.
do $$
begin
    if to_regnamespace('outbox') is null then
        create schema outbox;
        comment on schema outbox is 'Transactional outbox: captured changes and their deliveries. Made by outbox/sql.';
    elsif current_user <> (
        select pg_get_userbyid(n.nspowner) from pg_namespace as n where n.oid = to_regnamespace('outbox')
    ) then
        -- Whoever owns a schema can drop and replace what others made in it. It may have been waiting for us.
        raise exception 'The schema outbox is there, and belongs to somebody else than %.', current_user
            using errcode = 'insufficient_privilege', hint = 'Become its owner with SET ROLE, or drop it.';
    end if;
end
$$;

create table outbox.migrations (
    version integer not null,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default clock_timestamp(),
    constraint migrations_pkey primary key (version),
    constraint migrations_version_positive check (version > 0),
    constraint migrations_checksum_is_sha256 check (checksum ~ '^[0-9a-f]{64}$')
);
comment on table outbox.migrations is 'One row per applied file of sql/. Each file writes its own row.';
comment on column outbox.migrations.checksum is
    'SHA-256 of the file as it was released, read with this value itself replaced by nothing.';

insert into outbox.migrations (version, name, checksum)
values (1, 'ledger', '559fa8274e4c9ba3ed3188d529e09c0d60e5fdf01ac8ccba01030afe48dc140b');
