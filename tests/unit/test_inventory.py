import pytest

from edgepipe import inventory, targets
from edgepipe.errors import UsageError
from edgepipe.inventory import Sealed

YAML = """
all:
  vars: {edgepipe_site: hall}
  children:
    lab:
      vars: {edgepipe_site: lab, edgepipe_priority: 5}
      children:
        rpi4:
          hosts:
            pi-[01:03]: {}
            pi-07: {ansible_host: 10.0.0.7, ansible_user: pi, ansible_port: 2222}
    jetson_orin_nano:
      hosts:
        orin-01: {ansible_host: orin-01.local, ansible_python_interpreter: /usr/bin/python3.10}
"""
INI = """
bench-1 ansible_host=10.1.0.1   # alone
[rpi4]
pi-[1:2] ansible_user=pi
pi-3:2222
[lab:children]
rpi4
[lab:vars]
edgepipe_site="the lab"
edgepipe_priority=5
"""


@pytest.fixture
def fleet(tmp_path):
    path = tmp_path / "inventory.yml"
    path.write_text(YAML)
    return inventory.load(path)


def write(tmp_path, text, name="inventory.yml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def chosen(fleet, pattern):
    return [host.name for host in fleet.select(pattern)]


def test_yaml_gives_hosts_groups_and_variables_of_the_inner_group(fleet):
    assert list(fleet.hosts) == ["pi-01", "pi-02", "pi-03", "pi-07", "orin-01"]
    assert fleet.groups["lab"] == ("pi-01", "pi-02", "pi-03", "pi-07")
    pi = fleet.hosts["pi-07"]
    assert pi.groups == ("lab", "rpi4")
    assert (pi.text("edgepipe_site"), pi.variables["edgepipe_priority"]) == ("lab", 5)
    assert fleet.hosts["orin-01"].text("edgepipe_site") == "hall"


def test_ini_means_what_ansible_means_by_it(tmp_path):
    fleet = inventory.load(write(tmp_path, INI, "hosts.ini"))
    assert list(fleet.hosts) == ["bench-1", "pi-1", "pi-2", "pi-3"]
    assert fleet.hosts["pi-3"].variables == {"edgepipe_site": "the lab", "edgepipe_priority": 5, "ansible_port": 2222}
    assert fleet.hosts["bench-1"].groups == ("ungrouped",)
    assert fleet.groups["all"] == tuple(fleet.hosts)


def test_variables_beside_the_inventory_count_and_the_hosts_own_win(tmp_path):
    path = write(tmp_path, YAML)
    for folder, name, text in (
        ("group_vars", "all.yml", "edgepipe_root: /all"),
        ("group_vars", "rpi4.yml", "edgepipe_root: /rpi4"),
        ("host_vars", "pi-02.yml", "edgepipe_root: /own"),
        ("group_vars", "lab.yml", "$ANSIBLE_VAULT;1.1;AES256\n6162"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    roots = {name: host.text("edgepipe_root") for name, host in inventory.load(path).hosts.items()}
    assert roots == {"pi-01": "/rpi4", "pi-02": "/own", "pi-03": "/rpi4", "pi-07": "/rpi4", "orin-01": "/all"}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("all", ["pi-01", "pi-02", "pi-03", "pi-07", "orin-01"]),
        ("pi*:&lab:!pi-07", ["pi-01", "pi-02", "pi-03"]),
        ("!lab", ["orin-01"]),
        ("pi-01,orin-01", ["pi-01", "orin-01"]),
        ("~pi-0[27]", ["pi-02", "pi-07"]),
        ("rpi4[0]", ["pi-01"]),
        ("rpi4[1:2]", ["pi-02", "pi-03"]),
        ("rpi4[-1]", ["pi-07"]),
        ("rpi4[2:]", ["pi-03", "pi-07"]),
        ("jetson*", ["orin-01"]),
        ("!pi-07:lab", ["pi-01", "pi-02", "pi-03"]),  # written in any order
    ],
)
def test_patterns_choose_as_ansibles_do(fleet, pattern, names):
    assert chosen(fleet, pattern) == names


@pytest.mark.parametrize(
    ("pattern", "what"),
    [("labb", "did you mean lab"), ("pi-0x", "did you mean"), ("lab:!lab", "no host is chosen"), ("~(", "expression")],
)
def test_a_pattern_that_means_nothing_is_refused(fleet, pattern, what):
    with pytest.raises(UsageError) as caught:
        fleet.select(pattern)
    assert what in f"{caught.value.what} {caught.value.fix}"


@pytest.mark.parametrize(
    ("name", "text", "what", "where"),
    [
        ("i.yml", "all:\n  hosts:\n   a: {x: 1\n", "not valid YAML", "line 4"),
        ("i.yml", "lab:\n  hosts:\n    a:\n    a:\n", "twice", "line 4"),
        ("i.yml", "lab:\n  host:\n    a:\n", "holds host", ""),
        ("i.yml", "lab:\n  hosts: [a, b]\n", "must be mappings", ""),
        ("i.yml", "- a\n- b\n", "not an inventory", ""),
        ("i.yml", "plugin: aws_ec2\n", "plug-in", ""),
        ("i.yml", "$ANSIBLE_VAULT;1.1;AES256\n6162", "sealed", ""),
        ("i.yml", "lab: {hosts: {'../x': {}}}", "not a name of a host", ""),
        ("i.ini", "[lab\na\n", "not a section", "line 1"),
        ("i.ini", "[lab:vars]\nx\n", "not a variable", "line 2"),
        ("i.ini", "a x=1 'y\n", "can't be read", "line 1"),
        ("i.ini", "a x = 1\n", "not a variable", "line 1"),
        ("i.ini", "a[3:b]\n", "not a range", "line 1"),
        ("i.ini", "a[3:1]\n", "a range of nothing", "line 1"),
        ("i.ini", "[a:children]\nb\n[b:children]\na\n", "groups in a circle", ""),
        ("i.ini", "[a:children]\nb\n", "no such group", ""),
        ("hosts", "#!/bin/sh\necho {}\n", "a program", ""),
        ("i.ini", "\xff\n", "", ""),
    ],
)
def test_an_inventory_with_a_mistake_is_refused_with_its_place(tmp_path, name, text, what, where):
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        inventory.load(path)
    assert what in caught.value.what
    assert where in caught.value.where
    assert caught.value.fix


def test_an_alias_that_holds_itself_ends(tmp_path):
    with pytest.raises(UsageError):
        inventory.load(write(tmp_path, "a: &x\n  children:\n    b: *x\n"))


def test_a_sealed_value_stays_sealed_and_is_refused_only_where_it_is_needed(tmp_path):
    text = "lab: {hosts: {a: {ansible_password: !vault 'x', ansible_host: 10.0.0.1}, b: {ansible_host: !vault 'y'}}}"
    fleet = inventory.load(write(tmp_path, text))
    assert isinstance(fleet.hosts["a"].variables["ansible_password"], Sealed)
    assert targets.of_host(fleet.hosts["a"]).host == "10.0.0.1"
    with pytest.raises(UsageError, match="sealed by ansible-vault"):
        targets.of_host(fleet.hosts["b"])


def test_a_template_is_never_run(tmp_path):
    fleet = inventory.load(write(tmp_path, 'lab: {hosts: {a: {ansible_host: \'{{ lookup("pipe", "id") }}\'}}}'))
    with pytest.raises(UsageError, match="a template"):
        targets.of_host(fleet.hosts["a"])


def test_a_host_becomes_a_target_of_the_kind_its_group_names(fleet):
    pi, orin = targets.of_host(fleet.hosts["pi-07"]), targets.of_host(fleet.hosts["orin-01"])
    assert (pi.name, pi.host, pi.arch) == ("pi-07", "pi@10.0.0.7:2222", "aarch64")
    assert (orin.python, orin.opset) == ("/usr/bin/python3.10", targets.load("jetson-orin-nano").opset)


@pytest.mark.parametrize(
    ("variables", "what"),
    [("ansible_connection: winrm", "not by winrm"), ("edgepipe_target: rpi9", "no such target"),
     ("ansible_host: 'a b'", "not an address"), ("ansible_user: [x]", "not a plain value")],
)  # fmt: skip
def test_a_host_that_cant_be_a_target_is_refused(tmp_path, variables, what):
    fleet = inventory.load(write(tmp_path, f"lab: {{hosts: {{a: {{{variables}}}}}}}"))
    with pytest.raises(UsageError, match=what):
        targets.of_host(fleet.hosts["a"])


def test_every_verb_takes_a_host_of_the_inventory_as_its_target(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, YAML)
    assert targets.load("pi-07").host == "pi@10.0.0.7:2222"
    assert targets.load("pi-07", "me@elsewhere").host == "me@elsewhere"
    with pytest.raises(UsageError, match="no such target"):
        targets.load("pi-99")
    monkeypatch.setenv("EDGEPIPE_INVENTORY", str(tmp_path / "missing.yml"))
    with pytest.raises(UsageError, match="no such inventory"):
        targets.load("pi-07")
