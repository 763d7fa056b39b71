-- Capture: outbox.attach() puts triggers on a table, outbox.detach() takes them away.

set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
insert into outbox.migrations (version, name, checksum)
values (3, 'capture', '9e2d7bcf4d1cfbed75e008b67b3320ffc0c38ecb4c713db952813b22df4078f5');

-- The doorbell. 2: a daemon sleeps and wants to be woken; else when it rang last, in milliseconds since 1970. NOTIFY takes
-- a lock that makes all committing transactions of the database queue, so a trigger notifies only for a sleeping daemon. A
-- sequence, because its value is set outside transactions and without a row lock.
--
-- Who rings is heard when he commits. He may be long about it, or roll back, and others find the bell rung meanwhile: so
-- after 50 ms the next one rings, too, and nobody twice in one transaction.
create sequence outbox.doorbell;
comment on sequence outbox.doorbell is
'2 while a daemon sleeps: the next captured change notifies it and sets the time, in milliseconds since 1970.';

-- The JSON of one row, as an expression over its alias. The contract sends *_ts as epoch seconds, so a table
-- that keeps such a column as a timestamp has its columns written out one by one. That breaks with the first column
-- that is dropped, so there is a second form that names none: three times the cost, for tables whose shape changed
-- since they were attached. In it $1 is the table. alias.* is a row for certain; a bare alias may be a column.
-- `chosen`: the only columns to send, in the table's order; null for all.
create function outbox.record_expression(
    relation regclass, row_alias text, serializer regproc, names_columns boolean, chosen text[]
) returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    columns text;
    has_timestamps boolean;
    row_type text;
begin
    if serializer is not null then
        -- A row of a transition table is an anonymous record: the serializer's own row type is given back to it.
        select p.proargtypes[0]::regtype::text into row_type from pg_proc p where p.oid = serializer;
        if not names_columns then
            return format(
                '%s(json_populate_record(null::%s, to_json(%s.*)))::json', serializer::regproc, row_type, row_alias
            );
        end if;
        select string_agg(
            case
                -- A virtual generated column has no value in a transition table.
                when own.attname is null or own.attgenerated = 'v'
                    then format('null::%s', format_type(a.atttypid, a.atttypmod))
                else format('%s.%I', row_alias, a.attname)
            end, ', ' order by a.attnum
        )
        into columns
        from pg_type t
        join pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
        left join pg_attribute own
            on own.attrelid = relation and own.attname = a.attname and own.attnum > 0 and not own.attisdropped
        where t.oid = row_type::regtype;
        return format('%s(row(%s)::%s)::json', serializer::regproc, columns, row_type);
    end if;

    select
        bool_or(a.attname like '%\_ts' and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype)),
        string_agg(
            case
                -- Infinity has no epoch seconds, and must not fail the application's write.
                when a.attname like '%\_ts' and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype)
                    then format(
                        'case when isfinite(%1$s.%2$I) then floor(extract(epoch from %1$s.%2$I))::bigint end as %2$I',
                        row_alias, a.attname
                    )
                else format('%s.%I', row_alias, a.attname)
            end, ', ' order by a.attnum
        )
    into has_timestamps, columns
    from pg_attribute a
    where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
        and (chosen is null or a.attname = any (chosen));
    if not has_timestamps and chosen is null then
        return format('to_json(%s.*)', row_alias);
    elsif not names_columns then
        return format(
            -- The tempting json_each() over the record itself reads each escape in it, and fails for \u0000 and for half
            -- a pair of surrogates, which a column of type json may hold: \\ and \u are put otherwise meanwhile.
            E'(\n'
            '    select (''{'' || coalesce(string_agg(\n'
            '        f.name || '':'' || case\n'
            '            when json_typeof(f.value) <> ''string'' or f.name not in (\n'
            '                select to_json(a.attname::text)::text from pg_attribute as a\n'
            '                where a.attrelid = $1 and a.attname like ''%%\\_ts'' and not a.attisdropped\n'
            '                    and a.atttypid in (''timestamptz''::regtype, ''timestamp''::regtype)\n'
            '            ) then replace(replace(f.value::text, %3$s, %2$s), %5$s, %4$s)\n'
            '            when isfinite((f.value #>> ''{}'')::timestamptz)\n'
            '                then floor(extract(epoch from (f.value #>> ''{}'')::timestamptz))::bigint::text\n'
            '            else ''null''\n'
            '        end, '','' order by f.place\n'
            '    ), '''') || ''}'')::json\n'
            '    from (\n'
            '        select replace(replace(to_json(e.key)::text, %3$s, %2$s), %5$s, %4$s) as name, e.value, e.place\n'
            '        from json_each(replace(replace(to_json(%1$s.*)::text, %4$s, %5$s), %2$s, %3$s)::json)\n'
            '            with ordinality as e (key, value, place)\n'
            '    ) as f%6$s\n'
            ')',
            row_alias, $l$E'\\u'$l$, $l$E'\\\\u'$l$, $l$E'\\\\'$l$, $l$E'\\\\e'$l$,
            case
                when chosen is null then ''
                else E'\n    where f.name = any ('
                    || quote_literal(array(select to_json(c)::text from unnest(chosen) as c)) || '::text[])'
            end
        );
    end if;
    return format('(select to_json(outbox_record.*) from (select %s) as outbox_record)', columns);
end
$$;
comment on function outbox.record_expression(regclass, text, regproc, boolean, text[]) is
    'Internal to outbox.attach(): the expression that turns a row into the JSON that subscribers receive.';
revoke execute on function outbox.record_expression(regclass, text, regproc, boolean, text[]) from public;

-- A condition runs inside the trigger function, so with the rights of the capture and under the application's write.
-- PostgreSQL examines it as it does a CHECK constraint, on an empty table that is made for it: one boolean expression
-- over the row, without subqueries and aggregates. Two things more are refused that a condition has no need of: functions
-- that are not PostgreSQL's own, which somebody else could replace, and volatile ones. What goes into the trigger function
-- is not the given text but PostgreSQL's own print of what it understood.
create function outbox.read_condition(
    relation regclass, condition text, out expression text, out used_columns text[]
) returns record
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    -- Of this session alone: two may attach at the same time.
    scratch constant text := format('outbox.%I', 'condition_' || pg_backend_pid());
    definition text;
    probe refcursor;
    tree text;
    used smallint[];
    fault text;
begin
    select string_agg(
        format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
        || case when a.attcollation <> t.typcollation then ' collate ' || a.attcollation::regcollation else '' end,
        ', ' order by a.attnum
    )
    into definition
    from pg_attribute a
    join pg_type t on t.oid = a.atttypid
    where a.attrelid = relation and a.attnum > 0 and not a.attisdropped;
    execute format('create table %s (%s)', scratch, definition);
    begin
        -- A cursor is one statement, whatever the text. The line's end ends a comment in it.
        open probe for execute format(E'select (%s\n) from %s', condition, scratch);
        close probe;
        execute format(E'alter table %s add constraint outbox_condition check (%s\n)', scratch, condition);
        select pg_get_expr(c.conbin, c.conrelid), c.conbin::text, c.conkey into strict expression, tree, used
        from pg_constraint c
        where c.conrelid = scratch::regclass and c.conname = 'outbox_condition';
    exception
        when others then
            raise exception 'condition: %.', sqlerrm
                using errcode = 'invalid_parameter_value',
                hint = 'It is one boolean expression over the columns of the row, with operators and functions of '
                    'PostgreSQL: total > 0 and status <> ''draft''.';
    end;
    select string_agg(distinct p.oid::regprocedure::text, ', ') into fault
    from regexp_matches(tree, ':(?:op)?funcid (\d+)', 'g') as m
    join pg_proc p on p.oid = m[1]::oid
    where p.provolatile = 'v' or p.pronamespace <> 'pg_catalog'::regnamespace;
    if fault is not null then
        raise exception 'condition: % can not be used.', fault
            using errcode = 'invalid_parameter_value',
            hint = 'Only functions and operators of PostgreSQL''s own can be, and none that is volatile.';
    end if;
    if 0 >= any (used) then
        raise exception 'condition: the whole row and system columns can not be used.'
            using errcode = 'invalid_parameter_value', hint = 'Name the columns.';
    end if;
    used_columns := array(
        select a.attname::text from pg_attribute a
        where a.attrelid = scratch::regclass and a.attnum = any (used)
        order by a.attnum
    );
    execute format('drop table %s', scratch);
    select string_agg(format('"%s"', a.attname), ', ') into fault
    from pg_attribute a
    where a.attrelid = relation and a.attname = any (used_columns) and a.attgenerated = 'v';
    if fault is not null then
        raise exception 'condition: % is a virtual generated column of %: a trigger can not read its value.',
            fault, relation
            using errcode = 'feature_not_supported', hint = 'Make it STORED, or write out what it is generated from.';
    end if;
end
$$;
comment on function outbox.read_condition(regclass, text) is
    'Internal to outbox.attach(): examines a condition; returns how PostgreSQL writes it, and the columns it uses.';
revoke execute on function outbox.read_condition(regclass, text) from public;

-- As whom the capture runs. It runs code of others: a table's owner may add a column at any time whose type has a cast to
-- json that it made itself. So where outbox.grant_roles() could give outbox_capture what a capture needs, and that is
-- little, the functions that are generated are that role's, and not the owner's of everything.
create function outbox.owner_of_capture() returns name
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        (
            select r.rolname from pg_roles as r
            where r.rolname = 'outbox_capture' and has_column_privilege(r.oid, o.oid, 'data', 'insert')
        ),
        pg_get_userbyid(o.relowner)
    )
    from pg_class as o
    where o.oid = 'outbox.outbox'::regclass
$$;
comment on function outbox.owner_of_capture() is 'Internal: the role that owns what is generated, and as which it runs.';
revoke execute on function outbox.owner_of_capture() from public;

create function outbox.give_to_capture(generated regprocedure) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    wanted constant name := outbox.owner_of_capture();
begin
    if wanted = (select pg_get_userbyid(p.proowner) from pg_proc as p where p.oid = generated) then
        return;
    end if;
    if has_schema_privilege(wanted, 'outbox', 'create') then
        execute format('alter function %s owner to %I', generated, wanted);
        return;
    end if;
    -- Whoever is to own a function of the schema must be able to create in it, for this one moment: nobody else sees it.
    -- With that right for good, whoever runs code in the capture could put functions of its own in front of ours. Two
    -- at once would change the same row of the catalog, and one of them fail.
    lock table outbox.migrations in share row exclusive mode;
    execute format('grant create on schema outbox to %I', wanted);
    execute format('alter function %s owner to %I', generated, wanted);
    execute format('revoke create on schema outbox from %I', wanted);
end
$$;
comment on function outbox.give_to_capture(regprocedure) is
    'Internal: gives a generated function to the role as which the capture runs.';
revoke execute on function outbox.give_to_capture(regprocedure) from public;

-- What a generated function was made for stands in the first line of its body. The tempting comment on the function is
-- its owner's to change, so code that runs in the capture could put a condition there, which the owner of everything
-- would examine, and so run, when it next attaches. A body can only be replaced by who may create in the schema.
--
-- Expands: related records, taken at the moment of the change. The functions that give them for a resource are called by
-- one generated function, expand_<hash of the resource>, whose first line is their registry, as the triggers are that of
-- the attachments. The capture of a resource calls it where it exists: who registers nothing pays nothing.
create function outbox.expand_function(resource text) returns text
language sql
immutable
strict
set search_path = pg_catalog, pg_temp
as $$ select 'expand_' || left(encode(sha256(convert_to($1, 'UTF8')), 'hex'), 32) $$;
comment on function outbox.expand_function(text) is 'Internal: the name of the function that takes a resource''s expands.';
revoke execute on function outbox.expand_function(text) from public;

create function outbox.attach(
    relation regclass,
    resource text,
    key text default null,
    location text default null,
    product_transaction text default null,
    serializer regproc default null,
    columns text[] default null,
    condition text default null
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    relation_kind "char";
    identity_columns smallint[];
    key_columns text[];
    column_name text;
    same_record text;
    -- The parts of the statement that are the same for every operation.
    record_columns text;
    rows_of text;
    is_new text;
    holds text;
    condition_columns text[];
    member regclass;
    function_name text;
    function_oid oid;
    names_columns boolean;
    operation text;
    captured text;
    captured_type text;
    expander text;
    -- What W3C Trace Context does not allow is none: it becomes a header. The tempting variable of the function would be
    -- a parameter of each statement, and a plan with parameters may be made anew each time: 70 µs.
    trace constant text :=
        '(select t.said from (select current_setting(''outbox.traceparent'', true) as said) as t where t.said '
        '~ ''^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$'')';
    suppressed constant text := 'lower(current_setting(''outbox.suppress'', true)) in (''on'', ''true'', ''yes'', ''1'')';
    source text;
    fast text[];
    traced text[];
    robust text[];
    is_traced boolean;
    shape_check text := '';
    body text;
    shape_query text;
    columns_of_shape text[];
    shape record;
    attempt integer := 0;
begin
    if current_setting('lock_timeout') = '0' then
        perform set_config('lock_timeout', '5s', true);
    end if;

    -- What is asked for must make sense, and say so here rather than in the application's next write.
    if attach.relation is null then
        raise exception 'relation must not be null.' using errcode = 'invalid_parameter_value';
    end if;
    if attach.resource is null or char_length(attach.resource) not between 1 and 128 then
        raise exception 'resource must have 1 to 128 characters.' using errcode = 'invalid_parameter_value';
    end if;
    select c.relkind into relation_kind from pg_class c where c.oid = attach.relation;
    if relation_kind not in ('r', 'p') then
        raise exception '% is not an ordinary or partitioned table.', attach.relation
            using errcode = 'wrong_object_type', hint = 'Attach the tables that a view or foreign table reads.';
    end if;
    if relation_kind = 'r' and exists (select from pg_inherits i where i.inhparent = attach.relation) then
        raise exception '% has tables that inherit from it: what is written to them by their names is not seen.',
            attach.relation
            using errcode = 'wrong_object_type', hint = 'A partitioned table can be attached, with all its partitions.';
    end if;
    if exists (
        select from pg_inherits i
        where i.inhrelid = attach.relation and not exists (
            select from pg_trigger t
            join pg_proc p on p.oid = t.tgfoid and p.pronamespace = 'outbox'::regnamespace
            where t.tgrelid = i.inhparent and t.tgname = 'outbox_insert'
        )
    ) then
        raise exception '% is a part of another table: what is written by the name of that one would not be seen.',
            attach.relation
            using errcode = 'wrong_object_type', hint = 'Attach the partitioned table; one with heirs can not be.';
    end if;
    if exists (
        select from pg_partition_tree(attach.relation) as m
        join pg_class c on c.oid = m.relid and c.relkind = 'f'
    ) then
        raise exception '% has a foreign table among its partitions: what is written there can not be captured.',
            attach.relation
            using errcode = 'wrong_object_type', hint = 'Take that partition out of it first.';
    end if;
    if exists (
        select from pg_class c
        where c.oid = attach.relation and c.relnamespace in ('outbox'::regnamespace, 'pg_catalog'::regnamespace)
    ) then
        raise exception '% belongs to the outbox or to PostgreSQL and can not be attached.', attach.relation
            using errcode = 'wrong_object_type';
    end if;

    if attach.columns is not null then
        if attach.serializer is not null then
            raise exception 'columns and serializer exclude each other: a serializer decides what is sent.'
                using errcode = 'invalid_parameter_value';
        end if;
        if cardinality(attach.columns) = 0 or array_position(attach.columns, null) is not null then
            raise exception 'columns must name one column or more.' using errcode = 'invalid_parameter_value';
        end if;
        foreach column_name in array attach.columns loop
            if not exists (
                select from pg_attribute a
                where a.attrelid = attach.relation and a.attname = column_name and a.attnum > 0 and not a.attisdropped
            ) then
                raise exception 'columns: % has no column "%".', attach.relation, column_name
                    using errcode = 'undefined_column';
            end if;
        end loop;
        -- In the table's order, each once: the record keeps its own order whatever is chosen of it.
        columns := array(
            select a.attname::text from pg_attribute a
            where a.attrelid = attach.relation and a.attname = any (attach.columns) and a.attnum > 0
                and not a.attisdropped
            order by a.attnum
        );
    end if;
    condition := nullif(trim(attach.condition, E' \t\r\n'), '');

    if attach.serializer is null then
        select a.attname into column_name from pg_attribute a
        where a.attrelid = attach.relation and a.attnum > 0 and not a.attisdropped and a.attgenerated = 'v'
            and (attach.columns is null or a.attname = any (attach.columns))
        order by a.attnum
        limit 1;
        if found then
            raise exception '% has the virtual generated column "%": a trigger can not read its value.',
                attach.relation, column_name
                using errcode = 'feature_not_supported',
                hint = 'Make the column STORED, or attach with columns or a serializer that leave it out.';
        end if;
    end if;

    -- Old and new rows of an UPDATE are matched by the columns that identify a row.
    select array(select k from unnest(i.indkey::smallint[]) with ordinality as u (k, n) where n <= i.indnkeyatts)
    into identity_columns
    from pg_index i
    where i.indrelid = attach.relation and i.indisunique and i.indisvalid and i.indimmediate
        and i.indpred is null and i.indexprs is null
        and not exists (
            select from unnest(i.indkey::smallint[]) with ordinality as u (k, n)
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k
            where n <= i.indnkeyatts and not a.attnotnull
        )
    order by i.indisprimary desc, i.indnkeyatts, i.indexrelid
    limit 1;
    if identity_columns is null then
        raise exception '% has no key: no primary key and no unique index over NOT NULL columns.', attach.relation
            using errcode = 'invalid_table_definition',
            hint = 'Add one: old and new rows of an UPDATE are matched by it.';
    end if;

    if exists (
        -- A column's own name may hold a comma.
        select from pg_attribute a
        where a.attrelid = attach.relation and a.attname = attach.key and a.attnum > 0 and not a.attisdropped
    ) then
        key_columns := array[attach.key];
    elsif attach.key is not null then
        select array_agg(trim(k) order by n) into key_columns
        from unnest(string_to_array(attach.key, ',')) with ordinality as u (k, n);
    elsif exists (
        select from pg_attribute a
        where a.attrelid = attach.relation and a.attname = 'id' and not a.attisdropped and a.attnotnull
    ) then
        key_columns := array['id'];
    else
        select array_agg(a.attname::text order by n) into key_columns
        from unnest(identity_columns) with ordinality as u (k, n)
        join pg_attribute a on a.attrelid = attach.relation and a.attnum = k;
    end if;
    foreach column_name in array key_columns loop
        if not exists (
            select from pg_attribute a
            where a.attrelid = attach.relation and a.attname = column_name
                and a.attnum > 0 and not a.attisdropped and a.attnotnull
        ) then
            raise exception 'key: % has no NOT NULL column "%".', attach.relation, column_name
                using errcode = 'undefined_column';
        end if;
    end loop;

    -- Not said: the column of the usual name, where there is one. Said empty: none.
    if attach.location is null then
        location := (
            select a.attname from pg_attribute a
            where a.attrelid = attach.relation and a.attname = 'location_id' and not a.attisdropped
        );
    end if;
    if attach.product_transaction is null then
        product_transaction := (
            select a.attname from pg_attribute a
            where a.attrelid = attach.relation and a.attname = 'product_transaction_id' and not a.attisdropped
        );
    end if;
    location := nullif(location, '');
    product_transaction := nullif(product_transaction, '');
    for shape in
        select * from (values ('location', location), ('product_transaction', product_transaction)) as v (option, name)
        where v.name is not null and not exists (
            select from pg_attribute a
            where a.attrelid = attach.relation and a.attname = v.name and a.attnum > 0 and not a.attisdropped
        )
    loop
        raise exception '%: % has no column "%".', shape.option, attach.relation, shape.name
            using errcode = 'undefined_column';
    end loop;

    select a.attname into column_name from pg_attribute a
    where a.attrelid = attach.relation and a.attgenerated = 'v' and not a.attisdropped
        and a.attname = any (array_cat(key_columns, array[location, product_transaction]))
    limit 1;
    if found then
        raise exception '"%" is a virtual generated column of %: a trigger can not read its value.',
            column_name, attach.relation
            using errcode = 'feature_not_supported',
            hint = 'Make the column STORED, or name other columns as key, location and product_transaction.';
    end if;

    if attach.serializer is not null and not exists (
        select from pg_proc p
        join pg_type t on t.oid = p.proargtypes[0]
        where p.oid = attach.serializer and p.pronargs = 1 and t.typtype = 'c'
            and p.prorettype in ('json'::regtype, 'jsonb'::regtype) and not p.proretset
    ) then
        raise exception 'serializer: % must take one row and return json.', attach.serializer
            using errcode = 'invalid_function_definition',
            hint = format('Declare it as f(%s) returns json.', attach.relation);
    end if;

    if attach.condition is not null then
        select c.expression, c.used_columns into holds, condition_columns
        from outbox.read_condition(attach.relation, attach.condition) as c;
    end if;

    -- Types of an extension may keep their operators where the pinned search_path does not look: text does not.
    select string_agg(
        case
            when t.typnamespace = 'pg_catalog'::regnamespace or t.typtype = 'e'
                then format('outbox_row.%1$I = outbox_other_row.%1$I', a.attname)
            else format('outbox_row.%1$I::text = outbox_other_row.%1$I::text', a.attname)
        end, ' and ' order by u.n
    )
    into same_record
    from unnest(identity_columns) with ordinality as u (k, n)
    join pg_attribute a on a.attrelid = attach.relation and a.attnum = u.k
    join pg_type t on t.oid = a.atttypid;

    -- Two that attach tables of one name at the same time would both take it for their function.
    lock table outbox.migrations in share row exclusive mode;

    -- The function that the table already has, or a new one whose name says the table's.
    select t.tgfoid into function_oid
    from pg_trigger t
    join pg_proc p on p.oid = t.tgfoid and p.pronamespace = 'outbox'::regnamespace
    where t.tgrelid = attach.relation and t.tgname = 'outbox_insert' and not t.tgisinternal;
    if function_oid is not null and not exists (
        -- A partition shares its parent's function: attached by itself, it gets its own.
        select from pg_trigger t where t.tgfoid = function_oid and t.tgrelid <> attach.relation
            and t.tgrelid not in (select m.relid from pg_partition_tree(attach.relation) as m)
    ) then
        select p.proname into function_name from pg_proc p where p.oid = function_oid;
    else
        loop
            -- By bytes: a longer name would be cut short where it is created, and not found by its whole length.
            function_name := (
                select 'capture_' || left(c.relname, k) || coalesce('_' || nullif(attempt, 0), '')
                from pg_class c
                cross join generate_series(40, 0, -1) as k
                where c.oid = attach.relation and octet_length(left(c.relname, k)) <= 40
                order by k desc
                limit 1
            );
            exit when not exists (
                select from pg_proc p
                join pg_trigger t on t.tgfoid = p.oid
                where p.pronamespace = 'outbox'::regnamespace and p.proname = function_name
            );
            attempt := attempt + 1;
        end loop;
    end if;

    -- One statement for all rows of the writer's statement. Two forms name columns, for writers with and without a
    -- trace; the robust one is for the time between an ALTER TABLE and the next attach. Each name is put in by one
    -- format(): it may hold a %.
    record_columns := format(
        'concat_ws('','', %s) as resource_id, %s as location_id, %s as product_transaction_id',
        (
            select string_agg(format('outbox_row.%I', k), ', ' order by n)
            from unnest(key_columns) with ordinality as u (k, n)
        ),
        coalesce('outbox_row.' || quote_ident(location) || '::text', 'null::text'),
        coalesce('outbox_row.' || quote_ident(product_transaction) || '::text', 'null::text')
    );
    -- A row whose key changed has no old row.
    is_new := format(
        'outbox_other_row.%I is null',
        (
            select a.attname from pg_attribute a
            where a.attrelid = attach.relation and a.attnum = identity_columns[1]
        )
    );
    -- Not of a registration that is being made: it waits for us, and attaches anew.
    perform pg_advisory_xact_lock_shared('outbox.outbox'::regclass::oid::bigint);
    expander := (
        select p.proname from pg_proc p
        where p.pronamespace = 'outbox'::regnamespace and p.proname = outbox.expand_function(attach.resource)
    );
    foreach names_columns in array array[true, false] loop
        foreach operation in array array['CREATE', 'DELETE', 'UPDATE'] loop
            captured_type := quote_literal(operation);
            captured := outbox.record_expression(
                attach.relation, 'outbox_row', attach.serializer, names_columns, attach.columns
            );
            if operation <> 'UPDATE' then
                rows_of := format(
                    'from %s as outbox_row%s',
                    case operation when 'CREATE' then 'outbox_new' else 'outbox_old' end, ' where ' || holds
                );
            else
                -- Unchanged rows cost one comparison of images; a changed image is sent if the record changed as
                -- subscribers see it. A row whose key changed is a change.
                source := format(
                    '(outbox_row.* *<> outbox_other_row.* and %s::text is distinct from %s::text)',
                    captured,
                    outbox.record_expression(
                        attach.relation, 'outbox_other_row', attach.serializer, names_columns, attach.columns
                    )
                );
                if holds is null then
                    rows_of := format(
                        E'from outbox_new as outbox_row\n'
                        '            left join outbox_old as outbox_other_row on %s\n'
                        '            where %s or %s',
                        same_record, is_new, source
                    );
                else
                    -- As the row filters of logical replication do it: what nobody may see is never sent, and a
                    -- subscriber's copy is never left behind. A row that comes to fulfil the condition is a CREATE,
                    -- one that no longer does is a DELETE with the last record that did, and one whose key changed
                    -- is both: nobody knows which old row it was. The tempting `new row or old row fulfils it` sends,
                    -- once, just the record that the condition is to keep back.
                    captured_type := 'captured.type';
                    rows_of := format(
                        E'select case when %5$s or not outbox_other.fulfils then ''CREATE'' else ''UPDATE'' end as type,\n'
                        '                %1$s, %2$s as data\n'
                        '            from outbox_new as outbox_row\n'
                        '            left join outbox_old as outbox_other_row on %3$s\n'
                        '            cross join lateral (\n'
                        '                select %4$s is true as fulfils from (select outbox_row.*) as outbox_row\n'
                        '            ) as outbox_this\n'
                        '            cross join lateral (\n'
                        '                select %4$s is true as fulfils\n'
                        '                from (select outbox_other_row.*) as outbox_other_row\n'
                        '            ) as outbox_other\n'
                        '            where outbox_this.fulfils and (%5$s or not outbox_other.fulfils or %6$s)\n'
                        '            union all\n'
                        '            select ''DELETE'', %1$s, %2$s\n'
                        '            from outbox_old as outbox_row\n'
                        '            left join outbox_new as outbox_other_row on %3$s\n'
                        '            cross join lateral (\n'
                        '                select %4$s is true as fulfils from (select outbox_row.*) as outbox_row\n'
                        '            ) as outbox_this\n'
                        '            cross join lateral (\n'
                        '                select %4$s is true as fulfils\n'
                        '                from (select outbox_other_row.*) as outbox_other_row\n'
                        '            ) as outbox_other\n'
                        '            where outbox_this.fulfils and (%5$s or not outbox_other.fulfils)',
                        record_columns, captured, same_record, holds, is_new, source
                    );
                end if;
            end if;
            foreach is_traced in array array[false, true] loop
                source := format(
                    E'insert into outbox.outbox\n'
                    '            (type, resource, resource_id, location_id, product_transaction_id, data%s%s)\n'
                    '        select %s::outbox.change, %L, ',
                    case when is_traced then ', traceparent' end,
                    case when expander is not null then ', expansions' end,
                    captured_type, attach.resource
                );
                if attach.serializer is null and expander is null and captured_type <> 'captured.type' then
                    source := source || format(
                        E'%s, %s%s\n        %s',
                        record_columns, captured, case when is_traced then ', ' || trace end, rows_of
                    );
                else
                    -- Its columns are asked for more than once, and are to be made once: a serializer may give null.
                    source := source || format(
                        E'captured.resource_id, captured.location_id,\n'
                        '            captured.product_transaction_id, captured.data%s%s\n'
                        '        from (\n'
                        '            %s\n'
                        '            offset 0\n'
                        '        ) as captured\n'
                        '        where captured.data is not null',
                        case when is_traced then ', ' || trace end,
                        ', outbox.' || expander || '(captured.resource_id, captured.location_id, '
                        'captured.product_transaction_id, ' || captured_type || ')',
                        case
                            when captured_type = 'captured.type' then rows_of
                            else format('select %s, %s as data %s', record_columns, captured, rows_of)
                        end
                    );
                end if;
                if names_columns and is_traced then
                    traced := traced || source;
                elsif names_columns then
                    fast := fast || source;
                elsif is_traced then
                    robust := robust || source;
                end if;
            end loop;
        end loop;
    end loop;
    if traced <> robust then
        -- The names, and which of them become epoch seconds, of the table and of the row that the serializer takes.
        shape_query := format(
            E'array(\n'
            '        select (a.attname || case when a.atttypid in (%s, %s) then '' timestamp'' else '''' end) collate "C"\n'
            '        from pg_attribute as a\n'
            '        where a.attrelid in (%%1$s%s) and a.attnum > 0 and not a.attisdropped%s\n'
            '        order by 1\n'
            '    )',
            'timestamptz'::regtype::oid, 'timestamp'::regtype::oid,
            (
                select format(', to_regclass(%L)', replace(t.typrelid::regclass::text, '%', '%%'))
                from pg_proc p join pg_type t on t.oid = p.proargtypes[0]
                where p.oid = attach.serializer and t.typrelid <> attach.relation
            ),
            -- A column that is not sent may come and go.
            E'\n            and a.attname = any (' || replace(quote_literal(attach.columns), '%', '%%') || '::text[])'
        );
        execute 'select ' || format(shape_query, '$1') into columns_of_shape using attach.relation;
        shape_check := format(
            E'if %s is distinct from %L::text[] then\n'
            '        if ' || suppressed || E' then\n'
            '            return null;\n'
            '        end if;\n'
            '        -- Altered since it was attached: name no column.\n'
            '        execute case tg_op when ''INSERT'' then %L when ''DELETE'' then %L else %L end using tg_relid;\n'
            '    els',
            format(shape_query, 'tg_relid'), columns_of_shape, robust[1], robust[2], robust[3]
        );
    end if;
    body := format(
        E'-- %9$s\n'
        '#variable_conflict use_column\n'
        'begin\n'
        '    %1$sif tg_op = ''INSERT'' and concat(\n'
        '        current_setting(''outbox.suppress'', true), current_setting(''outbox.traceparent'', true)\n'
        '    ) = '''' then\n'
        '        -- Nearly all writes, found in one look.\n'
        '        %6$s;\n'
        '    elsif %10$s then\n'
        '        return null;\n'
        '    elsif tg_op = ''INSERT'' then\n'
        '        %3$s;\n'
        '    elsif tg_op = ''DELETE'' then\n'
        '        if current_setting(''outbox.traceparent'', true) <> '''' then\n'
        '            %4$s;\n'
        '        else\n'
        '            %7$s;\n'
        '        end if;\n'
        '    elsif exists (select from outbox_new offset 50) then\n'
        '        -- Planned anew: a plan made for few rows would compare each of many with each.\n'
        '        execute %2$L;\n'
        '    else\n'
        '        if current_setting(''outbox.traceparent'', true) <> '''' then\n'
        '            %5$s;\n'
        '        else\n'
        '            %8$s;\n'
        '        end if;\n'
        '    end if;\n'
        '    if clock_timestamp() > ''epoch''::timestamptz\n'
        '            + (pg_sequence_last_value(''outbox.doorbell'') + 50) * ''1 ms''::interval\n'
        '        and current_setting(''outbox.doorbell'', true) is distinct from ''off'' then\n'
        '        perform setval(''outbox.doorbell'', (extract(epoch from clock_timestamp()) * 1000)::bigint);\n'
        '        perform pg_notify(''outbox'', '''');\n'
        '        perform set_config(''outbox.doorbell'', ''off'', true);\n'
        '    end if;\n'
        '    return null;\n'
        'end',
        shape_check, traced[3], traced[1], traced[2], traced[3],
        fast[1], fast[2], fast[3],
        json_build_object(
            'resource', attach.resource, 'key', array_to_string(key_columns, ','), 'location', location,
            'product_transaction', product_transaction, 'serializer', attach.serializer::regproc::text,
            'columns', attach.columns, 'condition', attach.condition, 'condition_columns', condition_columns,
            -- What the body was made for, so that `outbox doctor` sees when a table has moved away from it.
            'identity', (
                select json_agg(a.attname order by n)
                from unnest(identity_columns) with ordinality as u (k, n)
                join pg_attribute a on a.attrelid = attach.relation and a.attnum = u.k
            ),
            'shape', to_json(columns_of_shape)
        ),
        suppressed
    );
    -- The settings are those that change how a value is written: what is sent must not depend on who wrote.
    execute format(
        'create or replace function outbox.%I() returns trigger language plpgsql security definer '
        'set search_path = pg_catalog, pg_temp set timezone = ''UTC'' set datestyle = ''ISO, MDY'' '
        'set intervalstyle = ''postgres'' set bytea_output = ''hex'' set extra_float_digits = 1 '
        'set lc_monetary = ''C'' set xmlbinary = ''base64'' set quote_all_identifiers = off as %L',
        function_name, body
    );
    -- Nobody may hang the function on a table of his own and so forge events.
    execute format('revoke execute on function outbox.%I() from public', function_name);
    perform outbox.give_to_capture(format('outbox.%I()', function_name)::regprocedure);

    -- Statement triggers fire for the table that a statement names, so partitions get them too. After their parent, as
    -- writers lock them: the other way round one of them could end in a deadlock.
    for member in
        select m.relid from (
            select attach.relation as relid, 0 as level
            union
            select m.relid, m.level from pg_partition_tree(attach.relation) as m
        ) as m
        order by m.level, m.relid::oid
    loop
        if exists (
            select from pg_trigger t
            join pg_proc p on p.oid = t.tgfoid
            where t.tgrelid = member and t.tgname in ('outbox_insert', 'outbox_update', 'outbox_delete')
                and p.pronamespace <> 'outbox'::regnamespace
        ) then
            raise exception '% has a trigger of its own that is named like ours (outbox_insert, outbox_update or outbox_delete).', member
                using errcode = 'duplicate_object';
        end if;
        execute format(
            'create or replace trigger outbox_insert after insert on %s referencing new table as outbox_new '
            'for each statement execute function outbox.%I()', member, function_name
        );
        execute format(
            'create or replace trigger outbox_update after update on %s '
            'referencing old table as outbox_old new table as outbox_new '
            'for each statement execute function outbox.%I()', member, function_name
        );
        execute format(
            'create or replace trigger outbox_delete after delete on %s referencing old table as outbox_old '
            'for each statement execute function outbox.%I()', member, function_name
        );
    end loop;
end
$$;
comment on function outbox.attach(regclass, text, text, text, text, regproc, text[], text) is
    'Captures each change of the table as an event of the resource. Again on the same table: an update of the options.';
revoke execute on function outbox.attach(regclass, text, text, text, text, regproc, text[], text) from public;

create view outbox.attachments as
select
    t.tgrelid::regclass as relation,
    d.options ->> 'resource' as resource,
    d.options ->> 'key' as key,
    d.options ->> 'location' as location,
    d.options ->> 'product_transaction' as product_transaction,
    d.options ->> 'serializer' as serializer,
    case when pg_catalog.json_typeof(d.options -> 'columns') = 'array' then array(
        select c.name from pg_catalog.json_array_elements_text(d.options -> 'columns')
            with ordinality as c (name, place)
        order by c.place
    ) end as columns,
    d.options ->> 'condition' as condition,
    p.proname::text as function
from pg_catalog.pg_trigger as t
inner join pg_catalog.pg_proc as p
    on t.tgfoid = p.oid and p.pronamespace = 'outbox'::pg_catalog.regnamespace
cross join lateral (
    select pg_catalog.substring(p.prosrc, '^-- ([^\n]*)\n')::json as options
) as d
where t.tgname = 'outbox_insert' and not t.tgisinternal;
comment on view outbox.attachments is 'The tables that are attached, read from the catalog: their triggers are the truth.';

create function outbox.detach(relation regclass) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    member regclass;
    function_oids oid[];
    function_oid oid;
begin
    if current_setting('lock_timeout') = '0' then
        perform set_config('lock_timeout', '5s', true);
    end if;
    function_oids := array(
        select distinct t.tgfoid
        from pg_trigger t
        join pg_proc p on p.oid = t.tgfoid and p.pronamespace = 'outbox'::regnamespace
        where t.tgname in ('outbox_insert', 'outbox_update', 'outbox_delete')
            and t.tgrelid in (select detach.relation union select m.relid from pg_partition_tree(detach.relation) as m)
    );
    -- The parent first, as writers do.
    for member in
        select t.tgrelid::regclass
        from pg_trigger t
        join (
            select detach.relation as relid, 0 as level
            union
            select m.relid, m.level from pg_partition_tree(detach.relation) as m
        ) as m on m.relid = t.tgrelid
        where t.tgfoid = any (function_oids) and not t.tgisinternal
        group by t.tgrelid, m.level
        order by m.level, t.tgrelid
    loop
        if not pg_has_role((select c.relowner from pg_class c where c.oid = member), 'usage') then
            raise exception '%', format(
                'Only the owner of %1$s can take its triggers off: drop trigger outbox_insert on %1$s; '
                'drop trigger outbox_update on %1$s; drop trigger outbox_delete on %1$s;', member
            )
                using errcode = 'insufficient_privilege';
        end if;
        execute format('drop trigger if exists outbox_insert on %s', member);
        execute format('drop trigger if exists outbox_update on %s', member);
        execute format('drop trigger if exists outbox_delete on %s', member);
    end loop;
    foreach function_oid in array function_oids loop
        if not exists (select from pg_trigger t where t.tgfoid = function_oid) then
            execute format('drop function %s', function_oid::regprocedure);
        end if;
    end loop;
    return cardinality(function_oids) > 0;
end
$$;
comment on function outbox.detach(regclass) is
    'Takes the triggers off the table and its partitions. Returns whether there were any. Captured events stay.';
revoke execute on function outbox.detach(regclass) from public;

create view outbox.expands as
select
    d.options ->> 'resource' as resource,
    e.name,
    e.function
from pg_catalog.pg_proc as p
cross join lateral (
    select pg_catalog.substring(p.prosrc, '^-- ([^\n]*)\n')::json as options
) as d
cross join lateral pg_catalog.json_each_text(d.options -> 'expands') as e (name, function)
where p.pronamespace = 'outbox'::pg_catalog.regnamespace and p.proname ~ '^expand_[0-9a-f]{32}$';
comment on view outbox.expands is 'The expands that are registered, and the function that gives each.';

-- Makes, replaces or drops the function. `functions`: by the names of the expands, each as SQL writes it.
create function outbox.write_expands(resource text, functions json) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    function_name constant text := outbox.expand_function(write_expands.resource);
    existed boolean;
    cases text;
    names text;
    attached record;
begin
    existed := exists (
        select from pg_proc p where p.pronamespace = 'outbox'::regnamespace and p.proname = function_name
    );
    select string_agg(format(E'\n                when %L then found := %s($1)::json;', f.key, f.value), '' order by f.key),
        string_agg(quote_literal(f.key), ', ' order by f.key)
    into cases, names
    from json_each_text(write_expands.functions) as f;

    if cases is null then
        execute format('drop function if exists outbox.%I(text, text, text, text)', function_name);
    else
        -- Only what a config that will get this change asks for: the rules of the route, at this moment. Each is taken
        -- in a subtransaction (without an id of its own: it only reads), because a subscriber's wish must not fail the
        -- application's write. A cancelled statement ends it all the same.
        execute format(
            'create or replace function outbox.%I('
            'resource_id text, location_id text, product_transaction_id text, type text'
            ') returns json language plpgsql stable set search_path = pg_catalog, pg_temp as %L',
            function_name,
            format(
                E'-- %4$s\n'
                '#variable_conflict use_column\n'
                'declare\n'
                '    asked text;\n'
                '    found json;\n'
                '    taken text;\n'
                'begin\n'
                '    for asked in\n'
                '        select distinct trim(e.name) collate "C"\n'
                -- Two looks into the index: `location_id is null or …` reads all configs of the resource.
                '        from (\n'
                '            select c.product_transaction_id, c.on_create, c.on_update, c.on_delete, c.expands\n'
                '            from outbox.postback_configs as c\n'
                '            where c.resource = %1$L and c.location_id = $2 and c.is_active and c.deleted_at is null\n'
                '            union all\n'
                '            select c.product_transaction_id, c.on_create, c.on_update, c.on_delete, c.expands\n'
                '            from outbox.postback_configs as c\n'
                '            where c.resource = %1$L and c.location_id is null\n'
                '                and c.is_active and c.deleted_at is null\n'
                '        ) as c\n'
                '        cross join lateral unnest(string_to_array(c.expands, '','')) as e (name)\n'
                '        where c.expands <> ''''\n'
                '            and (c.product_transaction_id is null or c.product_transaction_id = $3)\n'
                '            and case $4 when ''CREATE'' then c.on_create when ''UPDATE'' then c.on_update\n'
                '                else c.on_delete end\n'
                '            and trim(e.name) in (%2$s)\n'
                '        order by 1\n'
                '    loop\n'
                '        begin\n'
                '            case asked%3$s\n'
                '            end case;\n'
                '            taken := concat_ws(\n'
                '                '','', taken,\n'
                '                to_json(asked)::text || '':'' || coalesce(trim(found::text, E'' \\t\\r\\n''), ''null'')\n'
                '            );\n'
                '        exception\n'
                '            when others then\n'
                '                raise warning ''outbox: the expand "%%" of the record "%%" was not taken: %%'',\n'
                '                    asked, $1, sqlerrm;\n'
                '        end;\n'
                '    end loop;\n'
                '    return (''{'' || taken || ''}'')::json;\n'
                'end',
                write_expands.resource, names, cases,
                json_build_object('resource', write_expands.resource, 'expands', write_expands.functions)
            )
        );
        execute format('revoke execute on function outbox.%I(text, text, text, text) from public', function_name);
        perform outbox.give_to_capture(format('outbox.%I(text, text, text, text)', function_name)::regprocedure);
    end if;

    if existed <> (cases is not null) then
        -- The capture of the resource begins or ends to call it: attached again as it is, partitions by their parent.
        for attached in
            select a.*
            from outbox.attachments a
            where a.resource = write_expands.resource
                and not exists (
                    select from outbox.attachments o
                    join pg_partition_ancestors(a.relation) as m on m.relid = o.relation
                    where o.function = a.function and o.relation <> a.relation
                )
        loop
            perform outbox.attach(
                attached.relation, attached.resource, attached.key, coalesce(attached.location, ''),
                coalesce(attached.product_transaction, ''),
                (
                    -- By what it takes: its name alone may be another's too.
                    select p.oid::regproc
                    from pg_proc p
                    join pg_namespace s on s.oid = p.pronamespace
                    join pg_type t on t.oid = p.proargtypes[0] and t.typtype = 'c'
                    where array[s.nspname::text, p.proname::text] = parse_ident(attached.serializer) and p.pronargs = 1
                    order by p.oid
                    limit 1
                ),
                attached.columns, attached.condition
            );
        end loop;
    end if;
end
$$;
comment on function outbox.write_expands(text, json) is 'Internal to outbox.register_expand() and outbox.unregister_expand().';
revoke execute on function outbox.write_expands(text, json) from public;

create function outbox.register_expand(resource text, name text, function regproc) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if current_setting('lock_timeout') = '0' then
        perform set_config('lock_timeout', '5s', true);
    end if;
    if register_expand.resource is null or char_length(register_expand.resource) not between 1 and 128 then
        raise exception 'resource must have 1 to 128 characters.' using errcode = 'invalid_parameter_value';
    end if;
    if register_expand.name is null or register_expand.name !~ '^[A-Za-z0-9_.-]{1,128}$' then
        raise exception 'name must have 1 to 128 letters, digits, dots, dashes and underscores.'
            using errcode = 'invalid_parameter_value', hint = 'A config names it in expands, among commas.';
    end if;
    if not exists (
        select from pg_proc p
        where p.oid = register_expand.function and p.prokind = 'f' and p.pronargs = 1
            and p.proargtypes[0] = 'text'::regtype and p.prorettype in ('json'::regtype, 'jsonb'::regtype)
            and not p.proretset
    ) then
        raise exception 'function: % must take one text, the id of the record, and return json.',
            coalesce(register_expand.function::text, 'null')
            using errcode = 'invalid_function_definition', hint = 'Declare it as f(text) returns json.';
    end if;
    -- One at a time, and none while a table is being attached, which looks whether there is one.
    perform pg_advisory_xact_lock('outbox.outbox'::regclass::oid::bigint);
    perform outbox.write_expands(
        register_expand.resource,
        (
            select json_object_agg(e.name, e.function order by e.name)
            from (
                select e.name, e.function from outbox.expands as e
                where e.resource = register_expand.resource and e.name <> register_expand.name
                union all
                select register_expand.name, register_expand.function::text
            ) as e
        )
    );
end
$$;
comment on function outbox.register_expand(text, text, regproc) is
    'From now on, changes of the resource carry what the function gives for the record''s id, where a config asks for it.';
revoke execute on function outbox.register_expand(text, text, regproc) from public;

create function outbox.unregister_expand(resource text, name text) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    others json;
begin
    if current_setting('lock_timeout') = '0' then
        perform set_config('lock_timeout', '5s', true);
    end if;
    perform pg_advisory_xact_lock('outbox.outbox'::regclass::oid::bigint);
    if not exists (
        select from outbox.expands as e
        where e.resource = unregister_expand.resource and e.name = unregister_expand.name
    ) then
        return false;
    end if;
    select json_object_agg(e.name, e.function order by e.name) into others
    from outbox.expands as e
    where e.resource = unregister_expand.resource and e.name <> unregister_expand.name;
    perform outbox.write_expands(unregister_expand.resource, others);
    return true;
end
$$;
comment on function outbox.unregister_expand(text, text) is
    'Changes carry it no more. Returns whether it was registered. What was captured with it keeps it.';
revoke execute on function outbox.unregister_expand(text, text) from public;
