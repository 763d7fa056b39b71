-- Grants: what the roles of roles.sql may do here, for those of them that exist.

set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
insert into outbox.migrations (version, name, checksum)
values (6, 'roles', 'f10fe4b76466dcb469de7e18b7d8eba3ca09cd36444f6d89b34772f17d6e7bcf');

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
        ['outbox_daemon', 'select', 'sequence outbox.outbox_seq_seq'],
        ['outbox_daemon', 'execute', 'function outbox.make_partitions(integer)'],
        ['outbox_daemon', 'execute', 'function outbox.tell_of_config(uuid, text, text)'],
        ['outbox_daemon', 'execute', 'function outbox.partitions()'],
        ['outbox_daemon', 'execute', 'function outbox.prune_partition(text, timestamptz, timestamptz, boolean)'],
        [
            'outbox_daemon',
            'execute',
            'function outbox.prune_default(text, timestamptz, timestamptz, bigint, integer, boolean)'
        ],

        -- As this one others' code runs: so it reads of configs what says whether an expand is asked for, and no more.
        ['outbox_capture', 'usage', 'schema outbox'],
        [
            'outbox_capture',
            'insert (type, resource, resource_id, location_id, product_transaction_id, data, expansions, traceparent)',
            'table outbox.outbox'
        ],
        [
            'outbox_capture',
            'select (resource, expands, is_active, deleted_at, location_id, product_transaction_id, on_create, '
            'on_update, on_delete)',
            'table outbox.postback_configs'
        ],
        ['outbox_capture', 'select, update', 'sequence outbox.doorbell'],

        ['outbox_api', 'usage', 'schema outbox'],
        ['outbox_api', 'select', 'table outbox.migrations'],
        ['outbox_api', 'select, insert, update', 'table outbox.postback_configs'],
        ['outbox_api', 'select, update', 'table outbox.config_state'],
        ['outbox_api', 'select, insert, update, delete', 'table outbox.deliveries'],
        ['outbox_api', 'select', 'table outbox.events'],
        ['outbox_api', 'select', 'table outbox.attempts'],
        ['outbox_api', 'select', 'table outbox.users'],
        -- For the figures of /metrics: how many wait, and since when.
        ['outbox_api', 'select (seq, created_at)', 'table outbox.outbox'],

        ['outbox_reader', 'usage', 'schema outbox'],
        ['outbox_reader', 'select', 'table outbox.migrations'],
        ['outbox_reader', 'select', 'table outbox.attachments'],
        ['outbox_reader', 'select (seq, created_at)', 'table outbox.outbox'],
        ['outbox_reader', 'select', 'sequence outbox.outbox_seq_seq'],
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
    generated regprocedure;
    grant_ text [];
begin
    -- Two at once would change the same rows of the catalog, and one of them fail.
    lock table outbox.migrations in share row exclusive mode;
    -- A function is everybody's when it is made.
    revoke execute on all functions in schema outbox from public;

    -- outbox_capture is to own functions, which only its members can give it.
    present := array(
        select r.rolname::text from pg_roles as r
        where r.rolname in ('outbox_daemon', 'outbox_api', 'outbox_reader') or r.rolname = 'outbox_capture'
            and pg_has_role((select c.relowner from pg_class as c where c.oid = 'outbox.outbox'::regclass), r.oid, 'usage')
        order by 1
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
    if 'outbox_capture' = any (present) then
        for generated in
            select p.oid from pg_proc as p
            where p.pronamespace = 'outbox'::regnamespace and (
                p.proname like 'capture\_%' and p.prorettype = 'trigger'::regtype
                or p.proname ~ '^expand_[0-9a-f]{32}$'
            )
        loop
            perform outbox.give_to_capture(generated);
            execute format('grant execute on function %s to outbox_capture', generated);
        end loop;
    end if;
    return present;
end
$$;
comment on function outbox.grant_roles() is
    'Grants outbox_daemon, outbox_capture, outbox_api and outbox_reader what each needs, takes from them all else in this '
    'schema, and gives outbox_capture what attach() and register_expand() made. For the schema''s owner, as often as one '
    'likes. Returns those of them that exist.';
revoke execute on function outbox.grant_roles() from public;
select outbox.grant_roles();
