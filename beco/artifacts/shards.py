"""The split of the work over pictures into jobs."""

from __future__ import annotations

from beco.errors import UserError


def shard_ids(ids: list[str], shard: str) -> list[str]:
    """The part of `ids` that shard "k-of-n" (k from 1) works on: every n-th, so that the shards weigh alike."""
    try:
        number, count = (int(part) for part in shard.split("-of-"))
    except ValueError as error:
        raise UserError(f"--shard: expected k-of-n, such as 1-of-4, found `{shard}`") from error
    if not 1 <= number <= count:
        raise UserError(f"--shard: `{shard}` is out of range; k runs from 1 to n")
    return ids[number - 1 :: count]
