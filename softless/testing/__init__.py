"""The contract of an attention operator, for anybody's: `check_operator` and its pytest form."""

from softless.testing.contract import CHECKS, check_operator, every_check, faults_of
from softless.testing.faults import ContractBroken, Fault
from softless.testing.row import Row

__all__ = ["CHECKS", "ContractBroken", "Fault", "Row", "check_operator", "every_check", "faults_of"]
