"""Quests of a game. Progress is kept in the host's store, NPCs remember who has
helped them, other plugins hear of it, and the server asks conditions and effects."""

from stockade import Context, Event, condition, effect, on_event, simulation_config, tool


@tool
def advance(ctx: Context, player: str, quest: str, steps: int = 1) -> dict:
    """Goes on with a quest.

    Args:
        player: who.
        quest: which.
        steps: how far.
    """
    key = f"progress:{player}:{quest}"
    while True:
        before = ctx.kv.get(key)
        now = (before or 0) + steps
        # Two calls at once lose no step.
        if ctx.kv.compare_and_set(key, before, now):
            break
    ctx.metrics.counter("steps", steps, quest=quest)
    heard = ctx.events.emit("advanced", {"player": player, "quest": quest, "progress": now})
    return {"progress": now, "heard_by": heard}


@tool
def quests(ctx: Context, player: str) -> dict:
    """The progress of a player's quests."""
    keys = ctx.kv.list(f"progress:{player}:")
    return {key.rpartition(":")[2]: ctx.kv.get(key) for key in keys}


@tool
def help_npc(ctx: Context, player: str, npc: str) -> dict:
    """An NPC remembers who has helped it, in the call's workspace."""
    entity = ctx.entity(f"npc/{npc}")
    entity.set_flag(f"helped_by.{player}", True)
    return entity.update_relationship(player, {"trust": 1.0})


@condition(requires=["player", "quest"])
def has_finished(context: dict, ctx: Context) -> bool:
    """Has the player finished the quest (ten steps)?"""
    progress = ctx.kv.get(f"progress:{context['player']}:{context['quest']}", 0)
    return progress >= 10


@effect(params={"gold": 10})
def reward(context: dict, params: dict, ctx: Context) -> dict:
    """Gives the player gold."""
    key = f"gold:{context['player']}"
    gold = ctx.kv.get(key, 0) + params["gold"]
    ctx.kv.set(key, gold)
    return {"gold": gold}


@simulation_config(priority=50)
def pace(base: dict) -> dict:
    """Quests are looked at every five ticks."""
    return {"quests": {"every": 5}}


@on_event("session.ended")
def forget(event: Event, ctx: Context) -> None:
    """What was meant for one session ends with it."""
    for key in list(ctx.kv.list("session:")):
        ctx.kv.delete(key)
