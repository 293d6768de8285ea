"""Decide what a server that is cut off from the majority adds to its own standbys.

It sees itself alone: of each template it keeps its share of the standbys that the
grid agreed on, at least one. It only adds. What is too much, what is of a former
version and where desktops should live is the grid's business, when there is one. So are
personal desktops: nobody is given one here, and none is made.

Pure.
"""

from dataclasses import replace

from kmgr.balancer.model import Place, Plan, View
from kmgr.balancer.plan import plan
from kmgr.grid.island_rules import most_here, share
from kmgr.ids import ServerId
from kmgr.provision.lifecycle import LIVING
from kmgr.templates.model import Kind, Template


def plan_alone(view: View, own: ServerId) -> Plan:
    """Return what to place on this server, and what of its share cannot be placed now."""
    alone = View(
        servers=tuple(server for server in view.servers if server.id == own),
        templates=tuple(_limited(t, view, own) for t in view.templates if t.kind is Kind.POOLED),
        desktops=tuple(desktop for desktop in view.desktops if desktop.server == own),
        holders={version: held & {own} for version, held in view.holders.items()},
        vitals={server: vitals for server, vitals in view.vitals.items() if server == own},
        # Who asked while there was a majority may wait no longer, and only a leader drops what ran out.
        asks={},
    )
    decided = plan(alone, calm=True)
    return Plan(tuple(action for action in decided.actions if isinstance(action, Place)), decided.short)


def _limited(template: Template, view: View, own: ServerId) -> Template:
    elsewhere = sum(d.template == template.id and d.server != own and d.state in LIVING for d in view.desktops)
    return replace(
        template,
        standby=share(template.standby, view.servers),
        maximum=most_here(template.maximum, elsewhere, view.servers),
    )
