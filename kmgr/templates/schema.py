"""Tables of the templates package."""

SCHEMA = """
create table if not exists templates (
    id text primary key, name text not null unique, notes text not null, image text not null, version text not null,
    vcpus integer not null, memory_mib integer not null, standby integer not null, maximum integer not null,
    refresh text not null, enabled integer not null, broken_cause text not null, next_number integer not null,
    created_at integer not null, changed_at integer not null, kind text not null default 'pooled',
    policy text not null default '', parent text not null default ''
);
create table if not exists template_versions (
    template text not null, version text not null, number integer not null, notes text not null,
    author text not null, at integer not null, stand text not null, step text not null, cause text not null,
    default_at integer, soft_at integer, hard_at integer, primary key (template, version)
);
create table if not exists template_tags (
    template text not null, tag text not null, version text not null, primary key (template, tag)
);
create table if not exists canaries (
    template text primary key, version text not null, size integer not null, watch_s integer not null,
    patience_s integer not null, at integer not null, by text not null, failed integer not null, step text not null,
    cause text not null
);
"""
