"""Tables of the grid package. No default may read a clock; quantities carry their unit in the name."""

SCHEMA = """
create table if not exists meta (k text primary key, v integer not null);
create table if not exists outcomes (id text primary key, idx integer not null, outcome text not null) without rowid;
create index if not exists outcomes_by_idx on outcomes (idx);
create table if not exists grid (
    id text primary key, name text not null, ca_cert_pem text not null, ca_key_sealed text not null,
    created_at integer not null
);
create table if not exists servers (
    id text primary key, name text not null, grid_address text not null, web_address text not null,
    state text not null, version text not null, fingerprint text not null,
    joined_at integer not null, changed_at integer not null, draining integer not null default 0,
    role text not null default 'server', key_hash text not null default ''
);
create table if not exists invitations (
    id text primary key, sealed text not null, state text not null, created_by text not null,
    created_at integer not null, expires_at integer not null, tries_left integer not null, used_by text
);
create table if not exists recoveries (
    epoch integer primary key, at integer not null, server text not null, name text not null, how text not null
);
create table if not exists floating_address (id integer primary key, address text not null);
create table if not exists time_zone (id integer primary key, name text not null);
create table if not exists settings (k text primary key, v text not null);
create table if not exists events (
    n integer primary key, at integer not null, by text not null, kind text not null, subject text not null,
    text text not null
);
create table if not exists settled (outbox text primary key, server text not null, n integer not null);
create index if not exists events_by_subject on events (subject, n);
"""
