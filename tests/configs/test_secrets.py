"""Keys and passwords in a configuration, all of them made up."""

import pytest

from axolotl_sdft.configs.findings import secret_findings


def found(raw, text=""):
    return [finding.key for finding in secret_findings(raw, text)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("apiKey", "abc"),
        ("X-Api-Key", "abc"),
        ("aws_secret_access_key", "abc"),
        ("Authorization", "Bearer 0123abcd0123"),
        ("cookie", "session=1"),
        ("note", "Bearer abcdef.0123456789"),
        ("note", f"github_pat_{'a' * 30}"),
        ("note", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc"),
        ("note", "-----BEGIN RSA PRIVATE KEY-----"),
        ("path", "https://ann:open-sesame@example.com/rows.jsonl"),
        ("path", f"https://{'t' * 20}@example.com/rows.jsonl"),
        ("path", "https://bucket.example.com/rows.jsonl?X-Goog-Signature=0a1b2c3d4e5f"),
        ("path", "https://example.com/rows?access_token=abcdefgh12"),
        ("env", "OTHER=1 SERVICE_API_KEY=abcd1234"),
        ("mlflow_password", 20241105),
        ("account_key", "abc/def+ghi=="),
        *((f"{name}_token", "Ab12-cd34.ef56") for name in ("sas", "huggingface", "wandb", "login", "tracking")),
        ("openai_key", "Ab12-cd34.ef56"),
        ("storage", f"DefaultEndpointsProtocol=https;AccountName=acme;AccountKey={'Eby8vdM0' * 4}==;Suffix=core"),
        ("slack_url", "https://hooks.slack.com/services/T00000000/B00000000/mnopabcdEFGHijkl12345678"),
    ],
)
def test_a_secret_is_found_by_its_name_its_form_or_in_an_address(key, value):
    assert found({"outer": [{key: value}]}) == [f"outer[0].{key}"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pad_token", "<|endoftext|>"),
        ("image_token", "<image>"),
        ("api_key_env", "SERVICE_API_KEY"),
        ("api_key", "${SERVICE_API_KEY}"),
        ("hub_token", "<your token>"),
        ("revision", "0123456789abcdef0123456789abcdef01234567"),
        ("path", "https://example.com/rows?page=2&sort=name"),
        ("path", "ssh://git@example.com/rows"),
        ("system_prompt", "Keep every secret: never tell the password to a stranger."),
        ("hf_use_auth_token", "true"),
        ("hf_use_auth_token", True),
        ("token", 0),
        ("max_tokens", 4096),
        ("vllm_args", "--api-key $SERVICE_KEY --max-num-batched-tokens 16384"),
    ],
)
def test_what_looks_like_a_secret_but_gives_none_away_is_left_alone(key, value):
    assert found({key: value}) == []


@pytest.mark.parametrize(
    "comment",
    [
        "# SERVICE_API_KEY=0123abcd0123abcd",
        "a: 1  # the password is correct-horse-battery",
        "#password: sesame-open for the GPU box",
        "# passwd: opensesame",
        "# curl -H 'Authorization: Bearer 0123456789abcdef'",
        "# curl -s -u admin:hunter2x https://example.com/v1/models",
        "# start: vllm serve Qwen/Qwen3-8B --api-key team-secret-8841",
        "# start: vllm serve Qwen/Qwen3-8B --api-key=team-secret-8841",
        f"# first: wandb login {'0123456789abcdef' * 2}01234567",
        "# sshpass -p hunter2x ssh gpu1",
    ],
)
def test_a_secret_in_a_comment_is_found(comment):
    assert found({"a": 1}, f"b: 2\n{comment}\n") == ["comments"]


@pytest.mark.parametrize(
    "comment",
    [
        *("# token: optional", "# eos_token: <|im_end|>", "# the key: patience", "# password: $GPU_PASSWORD"),
        *("# vllm serve a/b --api-key $KEY", "# first: wandb login", "# curl -u admin:$PASSWORD https://example.com"),
        *("# sshpass -p <yours> ssh gpu1", "# vllm serve a/b --api-key anything"),
    ],
)
def test_a_comment_that_speaks_of_secrets_without_giving_one_away_is_left_alone(comment):
    assert found({"a": 1}, comment) == []
