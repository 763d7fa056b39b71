-- Grants: what the roles of roles.sql may do here, for those of them that exist.

set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
insert into outbox.migrations (version, name, checksum)
values (6, 'roles', 'eb47f0e51209a51f567793f634bd0623eeccecd24a004fe1fc8b9b7f1c1b3216');

create function outbox.grant_roles() returns text []
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    -- A row: the role, what it may do, and with which object. What a later file adds is added to a copy of this.
    --
    -- UPDATE of a column that nobody can update lets rows be locked, and no more: a plain UPDATE on the table would
    -- let them be forged. Columns are listed where others of the table are secret, so that a new one is until it is
    -- listed. Partitions have no grants: who names the parent is asked for the parent's.
    wanted constant text [] := array [
        ['outbox_daemon', 'usage', 'schema outbox'],
        ['outbox_daemon', 'select', 'table outbox.migrations'],
        ['outbox_daemon', 'select, delete, update (seq)', 'table outbox.outbox'],
        ['outbox_daemon', 'select, insert', 'table outbox.events'],
        [
            'outbox_daemon',
            'select, update (is_active, circuit_opened_at, exhausted_at, disabled_at, disabled_reason, revision, '
            'modified_at)',
            'table outbox.postback_configs'
        ],
        ['outbox_daemon', 'select, insert, update', 'table outbox.config_state'],
        ['outbox_daemon', 'select, insert, update, delete', 'table outbox.deliveries'],
        ['outbox_daemon', 'insert', 'table outbox.attempts'],
        ['outbox_daemon', 'select, update', 'sequence outbox.doorbell'],
        ['outbox_daemon', 'execute', 'function outbox.make_partitions(integer)'],
        ['outbox_daemon', 'execute', 'function outbox.tell_of_config(uuid, text, text)'],
        ['outbox_daemon', 'execute', 'function outbox.partitions()'],
        ['outbox_daemon', 'execute', 'function outbox.prune_partition(text, timestamptz, timestamptz, boolean)'],
        [
            'outbox_daemon',
            'execute',
            'function outbox.prune_default(text, timestamptz, timestamptz, bigint, integer, boolean)'
        ],

        ['outbox_api', 'usage', 'schema outbox'],
        ['outbox_api', 'select', 'table outbox.migrations'],
        ['outbox_api', 'select, insert, update', 'table outbox.postback_configs'],
        ['outbox_api', 'select, update', 'table outbox.config_state'],
        ['outbox_api', 'select, insert, update, delete', 'table outbox.deliveries'],
        ['outbox_api', 'select', 'table outbox.events'],
        ['outbox_api', 'select', 'table outbox.attempts'],
        ['outbox_api', 'select', 'table outbox.users'],

        ['outbox_reader', 'usage', 'schema outbox'],
        ['outbox_reader', 'select', 'table outbox.migrations'],
        ['outbox_reader', 'select', 'table outbox.attachments'],
        ['outbox_reader', 'select (seq, created_at)', 'table outbox.outbox'],
        ['outbox_reader', 'select', 'table outbox.events'],
        ['outbox_reader', 'select', 'table outbox.deliveries'],
        ['outbox_reader', 'select', 'table outbox.config_state'],
        ['outbox_reader', 'select', 'table outbox.attempts'],
        [
            'outbox_reader',
            'select (id, location_id, resource, product_transaction_id, url, on_create, on_update, on_delete, '
            'is_active, number_of_attempts, attempt_interval, expands, format, backoff, backoff_limit, strict_order, '
            'rate_limit, paused_at, circuit_opened_at, exhausted_at, disabled_at, disabled_reason, created_at, '
            'modified_at, deleted_at, revision, governed, former_resources)',
            'table outbox.postback_configs'
        ],
        [
            'outbox_reader',
            'select (id, name, location_ids, is_operator, created_at, deleted_at)',
            'table outbox.users'
        ]
    ];
    present text [];
    names text;
    relation text;
    grant_ text [];
begin
    -- Two at once would change the same rows of the catalog, and one of them fail.
    lock table outbox.migrations in share row exclusive mode;
    -- A function is everybody's when it is made.
    revoke execute on all functions in schema outbox from public;

    present := array(
        select r.rolname::text from pg_roles as r
        where r.rolname in ('outbox_daemon', 'outbox_api', 'outbox_reader') order by 1
    );
    if present = '{}' then
        return present;
    end if;
    -- What is no longer on the list goes. Others see the grants before and after, and nothing between.
    names := (select string_agg(quote_ident(p), ', ') from unnest(present) as p);
    for relation in
        select format('%s outbox.%I', case c.relkind when 'S' then 'sequence' else 'table' end, c.relname)
        from pg_class as c
        where c.relnamespace = 'outbox'::regnamespace and c.relkind in ('r', 'p', 'v', 'S') and not c.relispartition
    loop
        execute format('revoke all on %s from %s', relation, names);
    end loop;
    execute format('revoke all on all functions in schema outbox from %s', names);
    execute format('revoke all on schema outbox from %s', names);
    foreach grant_ slice 1 in array wanted loop
        if grant_[1] = any (present) then
            execute format('grant %s on %s to %I', grant_[2], grant_[3], grant_[1]);
        end if;
    end loop;
    return present;
end
$$;
comment on function outbox.grant_roles() is
    'Grants outbox_daemon, outbox_api and outbox_reader what each needs, and takes from them all else in this schema. '
    'For the schema''s owner, as often as one likes. Returns those of them that exist.';
revoke execute on function outbox.grant_roles() from public;
select outbox.grant_roles();
