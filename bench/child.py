"""The program that `bench.contender.Contender.measure` runs: ``python -m bench.child MODULE WORKLOAD``.

WORKLOAD is a JSON object with the fields of `Workload`. The last line that is printed is a `Measurement`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module

from bench.workload import Workload

if __name__ == "__main__":
    # Only the contender is imported: what others need must not show in its numbers.
    contender = import_module(f"bench.clients.{sys.argv[1]}")
    print(json.dumps(asdict(contender.run(Workload(**json.loads(sys.argv[2]))))))
