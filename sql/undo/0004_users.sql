-- Undoes 0004_users.sql: all users of the API are lost.
set local lock_timeout = '5s';
lock table outbox.migrations in share row exclusive mode;
delete from outbox.migrations where version = 4;

drop table outbox.users;
