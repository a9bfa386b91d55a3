"""Runs cases of the Autobahn TestSuite and says per group how they went.

usage: suite.py WSTEST URL REPORT CASES
Ends with 0 if every case is OK or INFORMATIONAL, with 1 if one is not, with 2 if the suite itself broke.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

GOOD = {"OK", "INFORMATIONAL"}
# wstest ends with 0, and a short report, when the server dies; a run that hangs ends here.
LIMIT_SECONDS = 5400


def main() -> int:
    wstest, url, report, cases = sys.argv[1:]
    report = pathlib.Path(report)
    spec = {
        "outdir": str(report),
        "servers": [{"url": url, "agent": "echo"}],
        "cases": cases.split(","),
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    (report / "spec.json").write_text(json.dumps(spec))
    log = report / "wstest.log"
    with log.open("w") as output:
        command = [wstest, "-m", "fuzzingclient", "-s", str(report / "spec.json")]
        ended = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT_SECONDS)
    announced = re.search(r"Ok, will run (\d+) test cases", log.read_text())
    if ended.returncode or not announced or not (report / "index.json").exists():
        print(log.read_text()[-2000:])
        return 2
    results = json.loads((report / "index.json").read_text()).get("echo", {})
    return judge(results, int(announced[1]))


def judge(results: dict, expected: int) -> int:
    groups = collections.defaultdict(collections.Counter)
    bad = []
    for case, result in results.items():
        behaviors = (result["behavior"], result["behaviorClose"])
        groups[int(case.split(".")[0])][behaviors[0]] += 1
        if not GOOD.issuperset(behaviors):
            bad.append((case, *behaviors))
    for group, counts in sorted(groups.items()):
        print(f"group {group:2}: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    for case in bad:
        print("BAD:", *case)
    print(f"{len(results)} of {expected} cases ran, {len(bad)} of them not as they should")
    return 1 if bad or len(results) != expected else 0


sys.exit(main())
