"""Tables of the users package."""

SCHEMA = """
create table if not exists accounts (
    name text primary key, display_name text not null, role text not null, groups text not null,
    disabled integer not null, password_hash text not null, created_at integer not null, changed_at integer not null
);
create table if not exists assignments (
    template text not null, kind text not null, subject text not null, primary key (template, kind, subject)
);
create table if not exists sessions (
    hash text primary key, name text not null, display_name text not null, groups text not null, role text not null,
    source text not null, address text not null, server text not null, created_at integer not null,
    expires_at integer not null
);
create index if not exists sessions_by_name on sessions (name);
create table if not exists login_failures (
    name text primary key, n integer not null, last_at integer not null, locked_until integer not null
);
create table if not exists directories (
    id text primary key, urls text not null, base_dn text not null, user_filter text not null,
    bind_name text not null, ca_pem text not null, start_tls integer not null, admin_group text not null,
    created_at integer not null, changed_at integer not null
);
"""
