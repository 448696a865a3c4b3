"""table.py WHAT FOLDER: a row of the table of operations: what each stream lost of what it sent, and how many of the kept
connections broke. Exits with 1 if something was lost that must not be."""
import json, sys

what, folder = sys.argv[1], sys.argv[2]
requests = ["l2-tcp", "l2-udp", "l2local-tcp", "bgp-tcp", "bgp-udp", "bgplocal-tcp"]
streams = requests + ["l2-conns", "l2local-conns", "bgp-conns"]
# What must be 0. A connection breaks only where its packets come to another node than before: with a speaker that ends for
# good, a node that is drained, deleted, or gone.
nothing = {
    **dict.fromkeys(["idle", "rollout", "delete", "crash", "controller", "upgrade", "badimage", "kubelet", "containerd"], streams),
    "freeze": requests + ["l2-conns", "l2local-conns"],  # BGP goes by the hold time
    "taint": requests,
}.get(what, [])
cells, wrong = [], []
for s in streams:
    r = json.load(open(f"{folder}/{s}.json"))
    lost, of = (r["broke"], r["connections"]) if "broke" in r else (r["lost"], r["sent"])
    cells.append(f"{lost}/{of}" if lost else "0")
    if lost and s in nothing:
        wrong.append(f"{s}: {json.dumps(r)}")
print(f"| {what:12} | " + " | ".join(f"{c:>12}" for c in cells) + " |")
if wrong:
    print("MUST BE 0: " + "; ".join(wrong))
    sys.exit(1)
