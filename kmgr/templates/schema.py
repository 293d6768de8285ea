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
create table if not exists image_kinds (image text primary key, kind text not null);
create trigger if not exists image_kind_over after delete on images begin
    delete from image_kinds where image = old.id;
end;
create table if not exists installs (template text primary key, iso text not null);
create table if not exists install_drivers (template text primary key, iso text not null);
create trigger if not exists template_installed after update of version on templates
when new.version <> old.version and exists (select 1 from installs where template = new.id) begin
    update templates set enabled = 1 where id = new.id;
    delete from template_versions where template = new.id and version = old.version;
    delete from installs where template = new.id;
    delete from install_drivers where template = new.id;
end;
create trigger if not exists install_over after delete on templates begin
    delete from installs where template = old.id;
    delete from install_drivers where template = old.id;
end;
"""
