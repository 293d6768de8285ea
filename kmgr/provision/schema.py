"""Tables of the provision package.

The stages of desktops' lives are written by triggers: whichever applier changes a
desktop's state, now or in a later release, its page tells of it. `changed_at` is
what dates them, so it is set by the statement that sets the state.
"""

SCHEMA = """
create table if not exists desktops (
    id text primary key, name text not null unique, template text not null, version text not null,
    server text not null, state text not null, generation integer not null, vcpus integer not null,
    memory_mib integer not null, user text, claimed_at integer, step text not null, cause text not null,
    created_at integer not null, changed_at integer not null, ready_at integer,
    kind text not null default 'pooled', moving_to text, connected_at integer, disconnected_at integer,
    origin text not null default 'cold', trouble text not null default '',
    purpose text not null default 'use', outfit text not null default ''
);
create index if not exists desktops_by_server on desktops (server, state);
create index if not exists desktops_by_host_name on desktops (lower(name));
create index if not exists desktops_by_user on desktops (user);
create index if not exists desktops_by_template on desktops (template, state);
create table if not exists stages (
    n integer primary key, desktop text not null, at integer not null, state text not null,
    generation integer not null, server text not null, user text, step text not null, cause text not null
);
create index if not exists stages_by_desktop on stages (desktop, n);
create trigger if not exists desktop_made after insert on desktops begin
    insert into stages (desktop, at, state, generation, server, user, step, cause)
    values (new.id, new.changed_at, new.state, new.generation, new.server, new.user, new.step, new.cause);
end;
create trigger if not exists desktop_changed after update on desktops
when new.state <> old.state or new.generation <> old.generation or new.server <> old.server
  or new.user is not old.user begin
    insert into stages (desktop, at, state, generation, server, user, step, cause)
    values (new.id, new.changed_at, new.state, new.generation, new.server, new.user, '', '');
    delete from stages where desktop = new.id and n <= (
        select n from stages where desktop = new.id order by n desc limit 1 offset 100
    );
end;
create trigger if not exists desktop_broken after update of cause on desktops when new.cause <> '' begin
    update stages set step = new.step, cause = new.cause where n = (
        select max(n) from stages where desktop = new.id
    );
end;
create trigger if not exists desktop_gone after delete on desktops begin
    delete from stages where desktop = old.id;
end;
create table if not exists losses (
    user text not null, template text not null, desktop text not null, server text not null, at integer not null,
    primary key (user, template)
);
create trigger if not exists desktop_lost after update of state on desktops
when new.state = 'retired' and old.state = 'in_use' and old.kind = 'pooled' and old.purpose = 'use'
  and old.user is not null begin
    delete from losses where user = old.user and template = old.template;
    insert into losses (user, template, desktop, server, at)
    select old.user, old.template, old.name, s.id, s.changed_at from servers s
    where s.id = old.server and s.state = 'lost';
end;
create table if not exists drain_notices (server text primary key, until integer not null, minutes integer not null);
create table if not exists leaving (
    desktop text primary key, generation integer not null, server text not null, until integer not null
);
create trigger if not exists drain_over after update on servers when new.draining = 0 or new.state = 'removed' begin
    delete from drain_notices where server = new.id;
    delete from leaving where server = new.id;
end;
create trigger if not exists leaving_over after update on desktops
when new.state <> old.state or new.generation <> old.generation or new.server <> old.server begin
    delete from leaving where desktop = new.id;
end;
create trigger if not exists leaving_gone after delete on desktops begin
    delete from leaving where desktop = old.id;
end;
create table if not exists copies (
    desktop text not null, server text not null, generation integer not null, state text not null, as_of integer,
    bytes integer not null, changed_at integer not null, primary key (desktop, server, generation)
);
create index if not exists copies_by_server on copies (server, state);
create table if not exists take_overs (
    desktop text primary key, generation integer not null, source text not null, target text not null,
    heard_at integer not null, at integer not null, as_of integer
);
create table if not exists moves (
    desktop text primary key, generation integer not null, source text not null, target text not null,
    why text not null, begun_at integer not null, failures integer not null, cause text not null
);
create table if not exists cold_moves (desktop text primary key, mark text not null);
create trigger if not exists cold_move_over after update on desktops
when new.moving_to is not old.moving_to or new.generation <> old.generation begin
    delete from cold_moves where desktop = new.id;
end;
create trigger if not exists cold_move_gone after delete on desktops begin
    delete from cold_moves where desktop = old.id;
end;
create table if not exists put_backs (
    desktop text primary key, server text not null, disk integer not null, at integer not null
);
create table if not exists tenures (server text primary key, tenure text not null, at integer not null);
create table if not exists asks (
    template text not null, user text not null, since integer not null, at integer not null,
    primary key (template, user)
);
create table if not exists captures (
    desktop text primary key, generation integer not null, server text not null, version text not null,
    image text not null, notes text not null, how text not null, by text not null, at integer not null,
    state text not null, step text not null, cause text not null
);
create trigger if not exists capture_over after update on desktops
when new.generation <> old.generation or new.server <> old.server begin
    update captures set state = 'failed', step = 'copy',
        cause = 'its desktop was made anew, or went on elsewhere, before the version was made'
    where desktop = new.id and state = 'wanted';
end;
create table if not exists version_variables (
    version text primary key, firmware text not null, variables text not null
);
create trigger if not exists version_variables_gone after delete on versions begin
    delete from version_variables where version = old.id;
end;
create table if not exists quotas (
    whom text not null, subject text not null, template text not null, most integer not null,
    primary key (whom, subject, template)
);
create trigger if not exists quota_over after delete on templates begin
    delete from quotas where template = old.id;
end;
create table if not exists claim_groups (desktop text not null, name text not null, primary key (desktop, name));
create trigger if not exists claim_over after update of user on desktops when new.user is not old.user begin
    delete from claim_groups where desktop = new.id;
end;
create trigger if not exists claim_gone after delete on desktops begin
    delete from claim_groups where desktop = old.id;
end;
create table if not exists failures (
    template text not null, version text not null, n integer not null, step text not null, cause text not null,
    at integer not null, primary key (template, version)
);
"""
