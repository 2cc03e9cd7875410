"""Tests of cluster/aws.yaml with Ray, moto's EC2 and the autoscaler."""

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import boto3
import botocore.session
import jsonschema
import pytest
import ray.autoscaler
from botocore.model import Shape
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from tests.support.autoscaler import started_by_v1, started_by_v2
from tests.support.cluster_files import FILLED_IN, Document, broken, load

AWS = load("aws.yaml")
REGION = AWS["provider"]["region"]
SCHEMA = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup")


def checked(config: Document) -> Document:
    """The configuration as `ray up` completes it. Raises for what Ray itself finds wrong."""
    prepared: Document = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@cache
def run_instances() -> Shape:
    """Return the parameters by which EC2 starts a node, from botocore."""
    model = botocore.session.get_session().get_service_model("ec2")
    return model.operation_model("RunInstances").input_shape


def complaints(config: Document) -> list[str]:
    """Return keys of the provider and of EC2 that do not exist, which Ray does not check."""
    known = json.loads(SCHEMA.read_text())["properties"]["provider"]["properties"]
    result = [f"provider: {key}" for key in config["provider"].keys() - known.keys()]
    for name, node_type in config["available_node_types"].items():
        request = {"MinCount": 1, "MaxCount": 1, **node_type["node_config"]}
        report = ParamValidator().validate(request, run_instances())
        result += [f"{name}: {report.generate_report()}"] * report.has_errors()
    return result


def test_ray_accepts_config_without_own_commands() -> None:
    prepared = checked(AWS)
    assert [prepared[f"{name}_commands"] for name in COMMANDS] == [[]] * len(COMMANDS)
    assert not any("pip" in c for c in prepared["head_start_ray_commands"])


def test_default_setup_would_install_ray() -> None:
    bare = {key: AWS[key] for key in AWS if not key.endswith("setup_commands")}
    assert any("pip install" in c for c in checked(bare)["head_setup_commands"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("max_worker", 3),
        ("docker/imagge", "x"),
        ("available_node_types/gpu-spot/min_worker", 0),
        ("head_node_type", "none"),
        ("max_workers", "many"),
    ],
)
def test_ray_rejects_bad_config(path: str, value: object) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        checked(broken(AWS, path, value))


def test_provider_and_node_keys_exist() -> None:
    assert complaints(AWS) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("provider/cache_stoped_nodes", False),
        ("available_node_types/gpu-spot/node_config/InstanceTyp", "g6.8xlarge"),
        ("available_node_types/gpu-spot/node_config/InstanceMarketOptions/Market", "spot"),
        ("available_node_types/head/node_config/BlockDeviceMappings/0/Ebs/VolumeSize", "200"),
    ],
)
def test_typo_is_found(path: str, value: object) -> None:
    wrong = broken(AWS, path, value)
    checked(wrong)
    assert len(complaints(wrong)) == 1


def test_only_head_stays_between_runs() -> None:
    types = AWS["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}  # no task of the job runs beside the driver
    assert all(t["min_workers"] == 0 for name, t in types.items() if name != "head")
    assert AWS["provider"]["cache_stopped_nodes"] is False
    spot = {"MarketType": "spot"}
    for name, node_type in types.items():
        market = node_type["node_config"].get("InstanceMarketOptions")
        assert market == (spot if name.endswith("-spot") else None)


@pytest.fixture(scope="module")
def ec2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[boto3.client]:
    """EC2 in this process, with the instance profile that README.md has users make."""
    with mock_aws(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray puts an SSH key there
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        profile = AWS["available_node_types"]["head"]["node_config"]["IamInstanceProfile"]["Name"]
        boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
        yield boto3.client("ec2", region_name=REGION)


@pytest.fixture(scope="module")
def config(ec2: boto3.client) -> Document:
    """The file with a security group that is there, as the README has users make it."""
    (vpc,) = ec2.describe_vpcs()["Vpcs"]
    made = ec2.create_security_group(
        GroupName="segrec-ray", Description="nodes of segrec", VpcId=vpc["VpcId"]
    )
    text = json.dumps(AWS).replace(FILLED_IN["<GROUP>"], made["GroupId"])
    with_group: Document = json.loads(text)
    return with_group


def launch(config: Document, name: str) -> Document:
    """Start a node of one type as Ray does; what EC2 then says about it."""
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: name}
    node_config = config["available_node_types"][name]["node_config"]
    (node,) = provider.create_node(node_config, tags, 1).values()
    (reservation,) = provider.ec2.meta.client.describe_instances(InstanceIds=[node.id])[
        "Reservations"
    ]
    instance: Document = reservation["Instances"][0]
    return instance


def test_ec2_starts_each_node_type(ec2: boto3.client, config: Document) -> None:
    ready = bootstrap_aws(checked(config))
    for name, node_type in config["available_node_types"].items():
        instance = launch(ready, name)
        expected = node_type["node_config"]["SecurityGroupIds"]
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == expected
        assert instance["InstanceType"] == node_type["node_config"]["InstanceType"]
        assert instance.get("InstanceLifecycle") == ("spot" if name.endswith("-spot") else None)
        assert "instance-profile/segrec-ray" in instance["IamInstanceProfile"]["Arn"]


def test_ssh_is_limited_to_the_user(ec2: boto3.client, config: Document) -> None:
    """Ray makes a group that is open to the world, if it is left to make one."""

    def open_to_the_world() -> set[str]:
        return {
            group["GroupName"]
            for group in ec2.describe_security_groups()["SecurityGroups"]
            for rule in group["IpPermissions"]
            if {"CidrIp": "0.0.0.0/0"} in rule["IpRanges"]
        }

    bootstrap_aws(checked(config))
    assert open_to_the_world() == set()
    bare = copy.deepcopy(config)
    for node_type in bare["available_node_types"].values():
        del node_type["node_config"]["SecurityGroupIds"]
    bootstrap_aws(checked(bare))
    assert open_to_the_world() == {"ray-autoscaler-segrec"}


def test_instance_metadata_is_local() -> None:
    """The metadata service in its second version, one hop away, and disks encrypted."""
    for node_type in AWS["available_node_types"].values():
        node = node_type["node_config"]
        assert node["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert [disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"]] == [True]


def test_ec2_refuses_typo(ec2: boto3.client, config: Document) -> None:
    wrong = broken(config, "available_node_types/head/node_config/InstanceTyp", "m7i.2xlarge")
    with pytest.raises(botocore.exceptions.ParamValidationError):
        launch(bootstrap_aws(checked(wrong)), "head")


def resources(ec2: boto3.client) -> dict[str, Document]:
    """Node types with the CPUs and GPUs of their instances, as Ray fills them in."""
    types = copy.deepcopy(AWS["available_node_types"])
    for name, node_type in types.items():
        expected = [node_type["node_config"]["InstanceType"]]
        (actual,) = ec2.describe_instance_types(InstanceTypes=expected)["InstanceTypes"]
        gpus = sum(gpu["Count"] for gpu in actual.get("GpuInfo", {}).get("Gpus", ()))
        offered = {"CPU": actual["VCpuInfo"]["DefaultVCpus"], **({"GPU": gpus} if gpus else {})}
        node_type["resources"] = offered | node_type["resources"]
        node_type.setdefault("max_workers", 0)
        assert bool(gpus) == name.startswith("gpu")
    return types


def test_autoscaler_prefers_spot_and_cpu_for_decoding(ec2: boto3.client) -> None:
    types = resources(ec2)
    assert started_by_v1(types, "head", [{"GPU": 1}] * 3) == {"gpu-spot": 3}
    assert started_by_v1(types, "head", [{"GPU": 1}] * 9) == {"gpu-spot": 8, "gpu-on-demand": 1}
    assert started_by_v1(types, "head", [{"CPU": 0.5}] * 65) == {"decode-spot": 2}


def test_autoscaler_2_mixes_spot_and_on_demand(ec2: boto3.client) -> None:
    assert "gpu-on-demand" in started_by_v2(resources(ec2), "head", [{"GPU": 1}] * 3)
    assert "--env RAY_enable_autoscaler_v2=0" in AWS["docker"]["run_options"]
