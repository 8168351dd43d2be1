"""The files of this folder that test registered models leave none out."""

from softless.models import ENTRIES
from softless.models.hosts import HOSTS
from tests.exporting.registered import names_of


def test_every_registered_model_is_written():
    names = names_of("vit") + names_of("xcit") + names_of("cvt", "pyramid")
    assert sorted(names) == sorted(n for n, entry in ENTRIES.items() if entry.alias_of is None)
    assert {"vit", "xcit", "cvt", "pyramid"} >= {host.name for host in HOSTS.values()}
    assert len(names) == 35
