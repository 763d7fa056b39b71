-- The users of the HTTP API, each for some locations, or as an operator for all.

set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
insert into outbox.migrations (version, name, checksum)
values (4, 'users', 'aa4dd514bdf430285138110303b8c2d3d5bfb9ea52970351daa97d050f77f5df');

create table outbox.users (
    id uuid not null default gen_random_uuid(),
    name text not null,
    key_hash bytea not null,
    location_ids text[] not null,
    is_operator boolean not null default false,
    created_at timestamptz not null default now(),
    deleted_at timestamptz,
    constraint users_pkey primary key (id),
    constraint users_name check (char_length(name) between 1 and 128),
    constraint users_key_hash check (octet_length(key_hash) = 32),
    constraint users_location_ids check (
        is_operator = (cardinality(location_ids) = 0)
        and array_position(location_ids, null) is null and '' <> all(location_ids)
    )
);
comment on table outbox.users is 'Who may use the HTTP API, and for which locations. An operator sees all.';
comment on column outbox.users.key_hash is
    'SHA-256 of the key. A slow hash protects guessable passwords; the key is 256 random bits.';
