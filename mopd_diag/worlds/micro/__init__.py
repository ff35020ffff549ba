"""The micro world: procedural domains that a model of 0.1 M parameters learns in seconds.

Prompts are at most 14 characters of printable ASCII, start with the domain's own letter and end with `:`; answers take
at most 12 tokens with the end. The families pull against each other on purpose: behind the first letter, prompts of
different domains look alike and want different answers.
"""

from __future__ import annotations

from mopd_diag.worlds.domain import Domain
from mopd_diag.worlds.micro.abstain import Abstain
from mopd_diag.worlds.micro.addition import Addition
from mopd_diag.worlds.micro.brackets import Brackets
from mopd_diag.worlds.micro.facts import Facts
from mopd_diag.worlds.micro.lists import Lists
from mopd_diag.worlds.micro.lookup import Lookup
from mopd_diag.worlds.micro.modular import Modular
from mopd_diag.worlds.micro.no_call import NoCall
from mopd_diag.worlds.micro.reversed import Reversed
from mopd_diag.worlds.micro.sorting import Sorting
from mopd_diag.worlds.micro.stack import Stack
from mopd_diag.worlds.micro.two_turn import TwoTurn

# The order is that of tables and reports: by family.
DOMAINS: dict[str, Domain] = {
    "addition": Addition(),
    "modular": Modular(),
    "sorting": Sorting(),
    "stack": Stack(),
    "lists": Lists(),
    "brackets": Brackets(),
    "lookup": Lookup(),
    "two-turn": TwoTurn(),
    "no-call": NoCall(),
    "facts": Facts(),
    "abstain": Abstain(),
    "reversed": Reversed(),
}
