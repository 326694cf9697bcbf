"""The program that `bench.client.Client.measure` runs: ``python -m bench.child MODULE WORKLOAD``.

WORKLOAD is a JSON object with the fields of `Workload`; a `Measurement` is printed the same way.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module

from bench.workload import Workload

if __name__ == "__main__":
    # Only the client under test is imported: what others need must not show in its numbers.
    client = import_module(f"bench.clients.{sys.argv[1]}")
    print(json.dumps(asdict(client.run(Workload(**json.loads(sys.argv[2]))))))
