"""Tables of the replica package."""

SCHEMA = """
create table if not exists images (
    id text primary key, name text not null unique, notes text not null, created_at integer not null,
    created_by text not null
);
create table if not exists versions (
    id text primary key, image text not null, number integer not null, size_bytes integer not null,
    used_bytes integer not null, block_bytes integer not null, manifest_hash text not null, state text not null,
    notes text not null, created_at integer not null, created_by text not null,
    unique (image, number)
);
create table if not exists holdings (
    version text not null, server text not null, at integer not null, primary key (version, server)
);
create table if not exists image_copies (image text primary key, copies integer not null);
create table if not exists damages (
    version text not null, server text not null, blocks integer not null, first_byte integer not null,
    at integer not null, primary key (version, server)
);
"""
