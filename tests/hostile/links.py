"""HDF5 links that lead out of the file, in a circle, or to a tree without an end."""

from __future__ import annotations

import h5py

from .cases import EITHER, HARMLESS, VICTIM
from .hdf5 import Place, hdf5


@hdf5("external|link")
def external_link(place: Place, is_hostile: bool) -> None:
    """CVE-2026-1669, keras #22899: a link into another file, whose values would be given away."""
    if is_hostile:
        place.group[place.name] = h5py.ExternalLink(place.secret(), "/w")
    else:
        place.put()


@hdf5("external|link")
def external_link_to_nothing(place: Place, is_hostile: bool) -> None:
    """The same with a file that does not exist: an error about it would tell which files do."""
    if is_hostile:
        place.group[place.name] = h5py.ExternalLink("/nonexistent/secret.h5", "/w")
    else:
        place.put()


@hdf5("soft|link")
def soft_link_inside(place: Place, is_hostile: bool) -> None:
    """keras #22900: soft links are followed on paths that were checked without them; hard links only."""
    place.group.file["elsewhere"] = VICTIM
    if is_hostile:
        place.group[place.name] = h5py.SoftLink("/elsewhere")
    else:
        place.put()


@hdf5("soft|link")
def soft_link_dangling(place: Place, is_hostile: bool) -> None:
    """A soft link out of the tree."""
    if is_hostile:
        place.group[place.name] = h5py.SoftLink("../../../../etc/passwd")
    else:
        place.put()


@hdf5("soft|link")
def soft_link_to_itself(place: Place, is_hostile: bool) -> None:
    """A soft link whose target is itself: whoever follows it goes in a circle."""
    if is_hostile:
        place.group[place.name] = h5py.SoftLink(f"{place.group.name}/{place.name}")
    else:
        place.put()


@hdf5("soft|link")
def soft_link_to_external_link(place: Place, is_hostile: bool) -> None:
    """keras #23161: one link after the other, the second of them external."""
    if is_hostile:
        place.group.file["elsewhere"] = h5py.ExternalLink(place.secret(), "/group")
        place.group[place.name] = h5py.SoftLink("/elsewhere/w")
    else:
        place.put()


@hdf5("cycle|circle|twice|hard link|within itself|inside itself|contains", EITHER, ("tree", "keras"))
def hard_link_cycle(place: Place, is_hostile: bool) -> None:
    """A group that has its own parent in it: a walk without memory never ends."""
    place.put()
    other = place.group.create_group("self" if is_hostile else "other")
    if is_hostile:
        place.group["cycle"] = place.group.parent
        other["cycle"] = place.group


@hdf5("more than|paths|twice|hard link|deep|group|again", EITHER, ("tree",))
def hard_links_of_2_40_paths(place: Place, is_hostile: bool) -> None:
    """40 groups, each twice in the one above: no cycle, but 2**40 paths to walk."""
    place.put()
    group = place.group.create_group("many")
    for _ in range(40):
        inner = group.create_group("a")
        if is_hostile:
            group["b"] = inner
        group = inner
    group["w"] = VICTIM


@hdf5(outcome=HARMLESS)
def hard_link_twice(place: Place, is_hostile: bool) -> None:
    """Two names of one dataset: tied weights, which are allowed."""
    place.put()
    if is_hostile:
        place.group[place.name + "_tied"] = place.group[place.name]
