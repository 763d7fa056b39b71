-- The tables: what was captured, who wants it, what is still owed, what was tried.

-- LOCK works in a transaction only (psql -1), and makes two that migrate at once take turns.
set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
insert into outbox.migrations (version, name, checksum)
values (2, 'tables', '85a139644ebff01b5d3cf6c2410ba91b22be639f47b60d2c810ceebb67091702');

-- A type of its own and not a CHECK: PostgreSQL reads a CHECK's text anew in each statement, 4 µs of each write.
create type outbox.change as enum ('CREATE', 'UPDATE', 'DELETE');
comment on type outbox.change is 'What happened to a record.';

-- What the triggers write and the daemon takes away within milliseconds. It has no index but its key, no
-- foreign key and no partitions, so that the application's writer pays one plain insert.
create table outbox.outbox (
    seq bigint generated always as identity,
    created_at timestamptz not null default now(),
    type outbox.change not null,
    resource text not null,
    resource_id text not null,
    location_id text,
    product_transaction_id text,
    data json not null,
    expansions json,
    traceparent text,
    constraint outbox_pkey primary key (seq)
) with (
    -- Every row is deleted soon: vacuum by count, never by share, and never truncate, because truncation
    -- takes an exclusive lock that the application's writers would wait for.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off,
    toast.vacuum_truncate = off
);
comment on table outbox.outbox is 'A captured change that nobody has routed yet. Written by triggers only.';

create table outbox.events (
    id uuid not null,
    created_at timestamptz not null,
    type text not null,
    resource text not null,
    resource_id text not null,
    location_id text,
    product_transaction_id text,
    data json not null,
    expansions json,
    traceparent text,
    constraint events_pkey primary key (id, created_at),
    constraint events_type check (type in ('CREATE', 'UPDATE', 'DELETE'))
) partition by range (created_at);
comment on table outbox.events is 'A captured change, for good: frozen, replayable until its partition is dropped.';
comment on column outbox.events.expansions is
    'The related records of that moment, by the names under which a config asks for them. Null when nobody did.';
comment on column outbox.events.traceparent is 'The writer''s trace (W3C Trace Context), if he named one.';
comment on column outbox.events.id is
    'The webhook-id. Its first 60 bits without the version are the outbox row''s seq, so ids sort in the order of '
    'capture; the last 62 are random, so that a restored backup never gives an old id to a new event.';
-- Its hash has one size, so a long key of the application's can not stop the routing. The tempting `using hash` walks all
-- that a record has to add one more: 200 µs for an event of a record that has had a million.
create index events_record on outbox.events (hashtextextended(resource_id, 0));

create table outbox.postback_configs (
    id uuid not null default gen_random_uuid(),
    location_id text,
    resource text not null,
    former_resources text[] not null default '{}',
    product_transaction_id text,
    url text not null,
    on_create boolean not null default true,
    on_update boolean not null default true,
    on_delete boolean not null default true,
    is_active boolean not null default true,
    number_of_attempts smallint not null default 1,
    attempt_interval integer not null default 300,
    basic_auth_username text,
    basic_auth_password text,
    signing_secrets text,
    expands text not null default '',
    format text not null default 'api-default',
    backoff text not null default 'fixed',
    backoff_limit integer not null default 86400,
    strict_order text not null default 'off',
    rate_limit integer,
    paused_at timestamptz,
    circuit_opened_at timestamptz,
    exhausted_at timestamptz,
    disabled_at timestamptz,
    disabled_reason text,
    created_at timestamptz not null default now(),
    modified_at timestamptz not null default now(),
    deleted_at timestamptz,
    revision bigint not null default 1,
    governed boolean not null generated always as (
        strict_order <> 'off' or rate_limit is not null or circuit_opened_at is not null
    ) stored,
    constraint postback_configs_pkey primary key (id),
    constraint postback_configs_location_id check (char_length(location_id) between 1 and 36),
    constraint postback_configs_resource check (char_length(resource) between 1 and 128),
    constraint postback_configs_product_transaction_id check (
        char_length(product_transaction_id) >= 1
        and (product_transaction_id is not null or resource not in ('transaction', 'transactionbatch'))
    ),
    constraint postback_configs_url check (char_length(url) <= 512 and url ~* '^https?://[^/?#[:space:]]'),
    constraint postback_configs_number_of_attempts check (number_of_attempts between 1 and 5),
    -- The contract's floor of 300 is the operator's to lower (OUTBOX_MIN_ATTEMPT_INTERVAL), so it is not held here.
    constraint postback_configs_attempt_interval check (attempt_interval between 1 and 86400),
    -- Only tokens of the Fernet cipher, which all begin alike: no clear text can be stored by mistake.
    constraint postback_configs_basic_auth_encrypted check (
        basic_auth_username like 'gAAAAA%' and (basic_auth_password is null or basic_auth_password like 'gAAAAA%')
    ),
    constraint postback_configs_basic_auth_whole check (basic_auth_username is not null or basic_auth_password is null),
    constraint postback_configs_signing_secrets_encrypted check (signing_secrets like 'gAAAAA%'),
    constraint postback_configs_expands check (char_length(expands) <= 512),
    constraint postback_configs_format check (format = 'api-default'),
    constraint postback_configs_backoff check (backoff in ('fixed', 'exponential')),
    constraint postback_configs_backoff_limit check (backoff_limit between 1 and 86400),
    constraint postback_configs_strict_order check (strict_order in ('off', 'release', 'hold')),
    constraint postback_configs_rate_limit check (rate_limit between 1 and 10000),
    -- Nobody but we switches a config off with a reason, and one that is switched on has none.
    constraint postback_configs_disabled check (
        (disabled_at is null) = (disabled_reason is null) and (disabled_at is null or not is_active)
    )
);
comment on table outbox.postback_configs is 'A subscription: what to watch and whom to tell.';
comment on column outbox.postback_configs.revision is 'Counts edits: tells a daemon that what it remembers is old.';
comment on column outbox.postback_configs.paused_at is 'Since when it collects what it is owed and sends nothing.';
comment on column outbox.postback_configs.deleted_at is 'A deleted config stays, so that its id answers "deleted".';
comment on column outbox.postback_configs.signing_secrets is
    'What signs its requests, encrypted: a list, so that the secret before stays valid for a while after a rotation.';
comment on column outbox.postback_configs.strict_order is
    'off; or one change of a record at a time, where a dead one releases or holds the later ones.';
comment on column outbox.postback_configs.rate_limit is 'Tries a second, over all daemons together.';
comment on column outbox.postback_configs.circuit_opened_at is
    'Since when it gets probes only, because it failed many times in a row.';
comment on column outbox.postback_configs.exhausted_at is 'When a delivery of it first died since it last recovered.';
comment on column outbox.postback_configs.disabled_at is 'When we switched it off; the reason stands beside it.';
comment on column outbox.postback_configs.governed is
    'Whether its deliveries are claimed by the rules of its order, its pace or its circuit.';
comment on column outbox.postback_configs.former_resources is
    'What it was for before: its log may have deliveries of these, so a search for them must not pass it over.';
create index postback_configs_location on outbox.postback_configs (location_id);
create index postback_configs_match on outbox.postback_configs (resource, location_id)
where is_active and deleted_at is null;
create index postback_configs_governed on outbox.postback_configs (id)
where governed and is_active and paused_at is null and deleted_at is null;
create index postback_configs_exhausted on outbox.postback_configs (id) where exhausted_at is not null;

-- What changes with each failure, and with each claim of a governed config, kept out of the config's own row: that
-- one is read by every route.
create table outbox.config_state (
    config_id uuid not null,
    failures integer not null default 0,
    troubles integer not null default 0,
    failing_since timestamptz,
    failed_at timestamptz,
    tokens double precision not null default 1,
    refilled_at timestamptz not null default now(),
    probes integer not null default 0,
    probe_at timestamptz not null default now(),
    constraint config_state_pkey primary key (config_id),
    constraint config_state_counts check (failures >= troubles and troubles >= 0 and probes >= 0),
    constraint config_state_failing_since check ((failing_since is null) = (failures = 0))
) with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 1000
);
comment on table outbox.config_state is 'How a config fares that fails or is governed. One that never was has no row.';
comment on column outbox.config_state.failures is 'Failed tries since the last success.';
comment on column outbox.config_state.troubles is
    'Of these, the ones that speak of the whole endpoint: no answer, 408, 429 and 5xx.';
comment on column outbox.config_state.failing_since is
    'Its first failure after the last success, or after a long silence.';
comment on column outbox.config_state.failed_at is 'When its last failure was counted.';
comment on column outbox.config_state.tokens is 'Tries that its rate limit allows, as of refilled_at.';
comment on column outbox.config_state.probe_at is 'When its open circuit lets the next probe through.';
create index config_state_failing on outbox.config_state (config_id) where failures > 0;

create function outbox.keep_former_resource() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if old.resource <> all (new.former_resources) then
        new.former_resources := new.former_resources || old.resource;
    end if;
    return new;
end
$$;
revoke execute on function outbox.keep_former_resource() from public;
create trigger keep_former_resource before update of resource on outbox.postback_configs
for each row when (old.resource <> new.resource) execute function outbox.keep_former_resource();

-- What is still owed: as small as the debt. Acknowledging deletes the row.
-- No foreign keys: each would lock a config's row for every delivery, and daemons would queue there.
create table outbox.deliveries (
    event_id uuid not null,
    config_id uuid not null,
    event_created_at timestamptz not null,
    state text not null default 'pending',
    attempts integer not null default 0,
    attempts_uncounted integer not null default 0,
    leased boolean not null default false,
    due_at timestamptz not null default now(),
    died_at timestamptz,
    last_error text,
    order_key bigint,
    constraint deliveries_pkey primary key (event_id, config_id),
    constraint deliveries_state check (state in ('pending', 'dead')),
    constraint deliveries_leased check (state = 'pending' or not leased),
    constraint deliveries_died_at check ((state = 'dead') = (died_at is not null)),
    constraint deliveries_attempts check (attempts >= attempts_uncounted and attempts_uncounted >= 0)
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);
comment on table outbox.deliveries is 'An event still owed to a config: pending, or dead and replayable.';
comment on column outbox.deliveries.due_at is
    'When it may be tried. Claiming moves it past the lease, so a claimer that dies gives it back by dying.';
comment on column outbox.deliveries.attempts is
    'Tries begun, ever. It is also the fence: a try settles only the delivery that still has its number.';
comment on column outbox.deliveries.attempts_uncounted is
    'Tries among attempts that use up no budget: those before the last replay, and those whose outcome nobody knows.';
comment on column outbox.deliveries.leased is
    'A daemon has it in hand until due_at. Due and still leased: that daemon died, and its try is an unknown one.';
comment on column outbox.deliveries.event_created_at is 'Finds the event''s partition.';
comment on column outbox.deliveries.order_key is
    'A hash of the record''s key, for a config with strict order; null for all others.';
create index deliveries_due on outbox.deliveries (config_id, due_at) where state = 'pending';
create index deliveries_dead on outbox.deliveries (config_id, died_at) where state = 'dead';
create index deliveries_order on outbox.deliveries (config_id, order_key, state, event_id) where order_key is not null;
-- For lists in the order of capture. The id is in them because one transaction captures all its rows at one time.
-- Each is for one state: the claim, which must not read what is dead, can use neither by mistake.
create index deliveries_pending_captured on outbox.deliveries (config_id, event_created_at, event_id)
where state = 'pending';
create index deliveries_dead_captured on outbox.deliveries (config_id, event_created_at, event_id)
where state = 'dead';

create table outbox.attempts (
    event_id uuid not null,
    config_id uuid not null,
    number integer not null,
    at timestamptz not null,
    event_created_at timestamptz not null,
    duration_ms integer not null,
    outcome text not null,
    status smallint,
    error text,
    answer text,
    constraint attempts_pkey primary key (event_id, config_id, number, at),
    constraint attempts_number check (number > 0),
    constraint attempts_duration_ms check (duration_ms >= 0),
    constraint attempts_outcome check (outcome in ('delivered', 'retry', 'dead'))
) partition by range (at);
comment on table outbox.attempts is 'One try: when, how long, the status or the error, the first bytes of the answer.';
-- Each try stands in one of these two: a config's last success and last failure are one probe each.
create index attempts_delivered on outbox.attempts (config_id, at) where outcome = 'delivered';
create index attempts_delivered_captured on outbox.attempts (config_id, event_created_at, event_id)
where outcome = 'delivered';
create index attempts_failed on outbox.attempts (config_id, at) where outcome <> 'delivered';

-- The daemon may tell of a config in trouble, and forge nothing else: so it has no right to insert into the outbox.
create function outbox.tell_of_config(config_id uuid, change text, reason text) returns void
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
    insert into outbox.outbox (type, resource, resource_id, location_id, product_transaction_id, data)
    select 'UPDATE', 'postbackconfig', c.id::text, c.location_id, c.product_transaction_id, json_build_object(
        'id', c.id, 'location_id', c.location_id, 'resource', c.resource, 'change', change, 'reason', reason,
        'is_active', c.is_active and change <> 'disabled', 'change_ts', floor(extract(epoch from now()))::bigint
    )
    from outbox.postback_configs as c
    where c.id = config_id and change in ('exhausted', 'opened', 'closed', 'disabled', 'recovered')
        -- Who is told of configs is not told of: a burst of such events that fails could cause the next.
        and c.resource <> 'postbackconfig'
$$;
comment on function outbox.tell_of_config(uuid, text, text) is
    'Captures an event of the resource postbackconfig: a change of how a config fares.';
revoke execute on function outbox.tell_of_config(uuid, text, text) from public;

-- Records of 2 kB and more are compressed by the writer, for which PostgreSQL's own pglz takes two to three times as
-- long, and twenty milliseconds for a megabyte that does not become smaller. Not every server was built with lz4.
do $$
begin
    alter table outbox.outbox alter column data set compression lz4, alter column expansions set compression lz4;
    alter table outbox.events alter column data set compression lz4, alter column expansions set compression lz4;
    alter table outbox.attempts alter column answer set compression lz4;
exception
    when feature_not_supported then null;
end
$$;

-- A row of a day that has no partition (a clock that jumps, a daemon that was away) lands here and is not lost.
create table outbox.events_default partition of outbox.events default;
create table outbox.attempts_default partition of outbox.attempts default;

-- It queues for the parent's lock, and whoever comes after it waits as long as it does: 50 ms at most.
create function outbox.make_partitions(days_ahead integer default 7) returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set lock_timeout = '50ms'
as $$
declare
    parent text;
    day date;
    made integer := 0;
begin
    foreach parent in array array['events', 'attempts'] loop
        for ahead in 0..days_ahead loop
            day := current_date + ahead;
            continue when to_regclass(format('outbox.%I', parent || to_char(day, '_YYYYMMDD'))) is not null;
            begin
                execute format(
                    'create table outbox.%I partition of outbox.%I for values from (%L) to (%L)',
                    parent || to_char(day, '_YYYYMMDD'), parent, day::timestamptz, (day + 1)::timestamptz
                );
                made := made + 1;
            exception
                -- Rows of that day already lie in the default partition: they stay there, and so does the day.
                when check_violation then null;
                -- Another daemon made it in this moment.
                when duplicate_table then null;
                -- Somebody reads the table for long (a dump): the next time will do, there are days left.
                when lock_not_available then null;
                -- The DBA has made a partition of his own that has this day, or a part of it.
                when invalid_object_definition then null;
            end;
        end loop;
    end loop;
    return made;
end
$$;
comment on function outbox.make_partitions(integer) is
    'Makes the daily partitions of events and attempts from today (UTC) on. Returns how many it made.';
revoke execute on function outbox.make_partitions(integer) from public;
select outbox.make_partitions();
