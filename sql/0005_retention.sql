-- Retention: history leaves by whole partitions, and nobody waits long for it.

set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
insert into outbox.migrations (version, name, checksum)
values (5, 'retention', 'fd0c8f31907d539e6311a5fee6342fe8b012a3476204b24ea3cff43f8f707798');

-- Read from the catalog and not from the names, so that a DBA's own partitions (a month, a year) count as well. The
-- one without an end, and the default, have no `until` and are never whole days of the past.
create function outbox.partitions()
returns table (parent text, name text, since timestamptz, until timestamptz, rows bigint, bytes bigint)
language sql
stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
as $$
    select p.relname, c.relname, b.ends[1]::timestamptz, b.ends[2]::timestamptz,
        case when c.reltuples >= 0 then c.reltuples::bigint end, coalesce(pg_total_relation_size(c.oid), 0)
    from pg_inherits i
    join pg_class p on p.oid = i.inhparent
    join pg_class c on c.oid = i.inhrelid
    cross join lateral (
        select regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \(''(.+)''\) TO \(''(.+)''\)$') as ends
    ) b
    where p.relnamespace = 'outbox'::regnamespace and p.relname in ('events', 'attempts')
        and c.relnamespace = 'outbox'::regnamespace and b.ends is not null
    order by b.ends[2]::timestamptz, p.relname, c.relname
$$;
comment on function outbox.partitions() is
    'The partitions of events and attempts that have both ends, oldest first. rows is an estimate, null if never made.';
revoke execute on function outbox.partitions() from public;

-- Drops one partition that lies wholly before `before`, and keeps the events that are still owed.
--
-- DROP TABLE needs ACCESS EXCLUSIVE on the parent, and whoever comes after it in the parent's queue waits as long as it
-- does. So all that takes time is done before that lock is asked for; the lock is tried without queueing, and only at
-- last with one short wait. What holds it then are a few rows of the catalog: PostgreSQL unlinks the files after the
-- locks are released.
--
-- The tempting DETACH PARTITION … CONCURRENTLY needs no such lock. It is refused where there is a default partition, and
-- it can not run in a function, so the daemon would have to own the tables.
create function outbox.prune_partition(
    partition text, before timestamptz, dead_before timestamptz, dry_run boolean default false,
    out fate text, out kept bigint
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set lock_timeout = '50ms'
-- From what is owed to its events, probe by probe: the statistics of a queue are never right, and a plan that begins
-- with the events would read a whole day to find the three that are owed.
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set jit = off
as $$
declare
    -- So many events are moved to the default partition while all wait; more get a partition of their own.
    few constant integer := 1000;
    quiet_tries constant integer := 20;
    anew constant text := left(partition, 50) || '_kept';
    day record;
    first_id uuid;
    last_id uuid;
    owed text;
    parent_locked boolean := false;
begin
    kept := 0;
    -- Whatever was asked for: no day goes that is younger than a day.
    select p.parent, p.since, p.until, p.rows into day from outbox.partitions() p
    where p.name = partition and p.until <= least(before, now() - interval '1 day');
    if not found then
        fate := 'gone';
        return;
    end if;

    if day.parent = 'events' then
        -- Nothing is routed into this day from here on: a change captured then and routed only now would be lost
        -- between the look at what is owed and the drop. Reads go on, and writes of every other day.
        if not dry_run then
            -- Nor is anything of it replayed: what becomes owed between that look and the drop would be lost.
            if not pg_try_advisory_xact_lock(hashtextextended('outbox.replay', 0)) then
                fate := 'held';
                return;
            end if;
            begin
                execute format('lock table outbox.%I in share row exclusive mode nowait', partition);
            exception when lock_not_available or undefined_table then
                fate := 'held';
                return;
            end;
        end if;
        -- The key of deliveries begins with the event's id, and a day's ids lie together: the debt of this one day is
        -- read, however large the rest is.
        execute format('select id from outbox.%I order by id limit 1', partition) into first_id;
        execute format('select id from outbox.%I order by id desc limit 1', partition) into last_id;
        owed := format(
            'from ('
            '    select distinct d.event_id, d.event_created_at from outbox.deliveries d'
            '    where d.event_id between $1 and $2 and (d.state = ''pending'' or d.died_at >= $3) offset 0'
            ') o join outbox.%I e on e.id = o.event_id and e.created_at = o.event_created_at',
            partition
        );
        execute 'select count(*) ' || owed into kept using first_id, last_id, dead_before;
        -- To write most of it anew would win nothing.
        if kept > few and kept * 2 > day.rows then
            fate := 'owed';
            return;
        end if;
    end if;
    if dry_run then
        fate := case when kept > few then 'thinned' else 'dropped' end;
        return;
    end if;

    if kept > 0 then
        execute format('create table outbox.%I (like outbox.events including all)', anew);
        execute format('insert into outbox.%I select e.* ', anew) || owed
            using first_id, last_id, dead_before;
        -- Proves to ATTACH what it would otherwise read all rows for, with the parent locked.
        execute format(
            'alter table outbox.%I add constraint of_its_day check (created_at >= %L and created_at < %L)',
            anew, day.since, day.until
        );
        execute format('analyze outbox.%I', anew);
    end if;

    -- A standby that is slow to confirm must not keep the lock. A drop that a failover forgets is done again.
    perform set_config('synchronous_commit', 'local', true);
    for attempt in 1..quiet_tries + 1 loop
        begin
            parent_locked := false;
            -- The parent before its partitions, as every statement does.
            if attempt <= quiet_tries then
                execute format('lock table only outbox.%I in access exclusive mode nowait', day.parent);
            else
                execute format('lock table only outbox.%I in access exclusive mode', day.parent);
            end if;
            parent_locked := true;
            execute format('lock table outbox.%I in access exclusive mode nowait', partition);
            execute format('lock table outbox.%I in access exclusive mode nowait', day.parent || '_default');
            execute format('drop table outbox.%I', partition);
            if kept > few then
                execute format(
                    'alter table outbox.events attach partition outbox.%I for values from (%L) to (%L)',
                    anew, day.since, day.until
                );
                execute format('alter table outbox.%I drop constraint of_its_day', anew);
                execute format('alter table outbox.%I rename to %I', anew, partition);
                fate := 'thinned';
                return;
            end if;
            if kept > 0 then
                -- Its day has no partition any more, so this lands in the default one.
                execute format('insert into outbox.events select * from outbox.%I', anew);
                execute format('drop table outbox.%I', anew);
            end if;
            fate := 'dropped';
            return;
        exception
            when lock_not_available then
                if attempt < quiet_tries then
                    perform pg_sleep(0.01);
                end if;
            when undefined_table then
                exit;
        end;
    end loop;
    if kept > 0 then
        execute format('drop table outbox.%I', anew);
    end if;
    fate := case when parent_locked then 'held' else 'busy' end;
end
$$;
comment on function outbox.prune_partition(text, timestamptz, timestamptz, boolean) is
    'Drops a partition that ends before the time. fate: dropped; thinned: only the kept rows are left, as they are '
    'many; owed: left as it is, because most of it is owed; busy: somebody has the whole table for long; held: '
    'somebody has this partition (autovacuum, a late route) or replays; gone: not there, or too young. kept: events that are still owed. dead_before: deliveries that died earlier count as not owed.';
revoke execute on function outbox.prune_partition(text, timestamptz, timestamptz, boolean) from public;

-- Deletes from some blocks of a default partition. The tempting `where created_at < … limit 10000` until nothing is left
-- reads, each time, past all that it deleted before and all that must stay.
create function outbox.prune_default(
    parent text, before timestamptz, dead_before timestamptz, first_block bigint, blocks integer default 1000,
    dry_run boolean default false
) returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    doomed text;
    found_rows bigint;
    cutoff constant timestamptz := least(before, now() - interval '1 day');
begin
    if first_block * current_setting('block_size')::integer
        >= pg_relation_size(format('outbox.%I', parent || '_default')::regclass)
    then
        return null;
    end if;
    doomed := format('from outbox.%I r where r.ctid >= %L and r.ctid < %L and ',
        parent || '_default', format('(%s,0)', first_block), format('(%s,0)', first_block + blocks)
    ) || case parent
        when 'attempts' then 'r.at < $1'
        when 'events' then
            'r.created_at < $1 and not exists ('
            '    select from outbox.deliveries d where d.event_id = r.id and d.event_created_at = r.created_at'
            '        and (d.state = ''pending'' or d.died_at >= $2)'
            ')'
    end;
    if dry_run then
        execute 'select count(*) ' || doomed into found_rows using cutoff, dead_before;
    else
        -- Not beside a replay: what it makes owed is not seen before it commits.
        if parent = 'events' and not pg_try_advisory_xact_lock(hashtextextended('outbox.replay', 0)) then
            raise exception 'A replay is under way.' using errcode = 'lock_not_available';
        end if;
        execute 'delete ' || doomed using cutoff, dead_before;
        get diagnostics found_rows = row_count;
    end if;
    return found_rows;
end
$$;
comment on function outbox.prune_default(text, timestamptz, timestamptz, bigint, integer, boolean) is
    'Deletes rows before the time from some blocks of a default partition, but no event that is owed. Returns how many, '
    'or null behind the last block.';
revoke execute on function outbox.prune_default(text, timestamptz, timestamptz, bigint, integer, boolean) from public;
