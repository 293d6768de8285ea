"""Tables of the templates package."""

SCHEMA = """
create table if not exists templates (
    id text primary key, name text not null unique, notes text not null, image text not null, version text not null,
    vcpus integer not null, memory_mib integer not null, standby integer not null, maximum integer not null,
    refresh text not null, enabled integer not null, broken_cause text not null, next_number integer not null,
    created_at integer not null, changed_at integer not null, kind text not null default 'pooled',
    policy text not null default ''
);
"""
