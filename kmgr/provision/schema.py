"""Tables of the provision package."""

SCHEMA = """
create table if not exists desktops (
    id text primary key, name text not null unique, template text not null, version text not null,
    server text not null, state text not null, generation integer not null, vcpus integer not null,
    memory_mib integer not null, user text, claimed_at integer, step text not null, cause text not null,
    created_at integer not null, changed_at integer not null, ready_at integer,
    kind text not null default 'pooled'
);
create index if not exists desktops_by_server on desktops (server, state);
create index if not exists desktops_by_user on desktops (user);
create index if not exists desktops_by_template on desktops (template, state);
create table if not exists copies (
    desktop text not null, server text not null, generation integer not null, state text not null, as_of integer,
    bytes integer not null, changed_at integer not null, primary key (desktop, server, generation)
);
create index if not exists copies_by_server on copies (server, state);
create table if not exists take_overs (
    desktop text primary key, generation integer not null, source text not null, target text not null,
    heard_at integer not null, at integer not null, as_of integer
);
create table if not exists put_backs (
    desktop text primary key, server text not null, disk integer not null, at integer not null
);
create table if not exists tenures (server text primary key, tenure text not null, at integer not null);
create table if not exists asks (
    template text not null, user text not null, since integer not null, at integer not null,
    primary key (template, user)
);
create table if not exists failures (
    template text not null, version text not null, n integer not null, step text not null, cause text not null,
    at integer not null, primary key (template, version)
);
"""
