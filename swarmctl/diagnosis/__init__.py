"""What is wrong with a host, and what mends it: facts and recorded words in, findings out. Pure.

`parse_examination` reads what fleet/examine.sh printed; `host_findings` judges one host, `swarm_findings`
compares them. Every finding carries what was seen, why it matters, and the command that mends it.
"""

from swarmctl.diagnosis.across import swarm_findings
from swarmctl.diagnosis.examined import Claim, Examined, Patient, parse_examination
from swarmctl.diagnosis.finding import SEVERITIES, Finding
from swarmctl.diagnosis.host import host_findings

__all__ = [
    "SEVERITIES",
    "Claim",
    "Examined",
    "Finding",
    "Patient",
    "host_findings",
    "parse_examination",
    "swarm_findings",
]
