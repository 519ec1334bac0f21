"""Whatever a URL's password looks like and wherever it stands, nothing of it is left in masked text."""

import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import DigestError, Interrupted, LakeError
from storage.redact import mask, mask_value, without_login

# Secrets are made of capitals and signs, all around them of small letters: a capital that is left is a leak.
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SCHEMES = [
    "https",
    "http",
    "git+https",
    "postgres",
    "postgresql+psycopg2",
    "mysql",
    "redis",
    "rediss+cluster",
    "s3",
    "sftp",
]
CHAINS = ["", "simplecache::", "filecache::", "zip://*.csv::", "simplecache::zip://a/b.csv::"]
passwords = st.text(CAPITALS + "/@:+%&?=#;,'\"!$*()[]{}|~^-_.", min_size=1, max_size=30)
tokens = st.text(CAPITALS + "-_.~%+", min_size=1, max_size=40)
values = st.text(CAPITALS + "/+=%-_.:;,@!", min_size=1, max_size=40)
users = st.text("abcxyz-_.%", max_size=8)
names = st.sampled_from([
    "pwd", "password", "pass", "passwd", "token", "access_token", "sig", "signature", "x-amz-signature",
    "x-amz-credential", "x-amz-security-token", "key", "api_key", "client_secret", "sas", "auth",
    "odbc_connect", "sslpassword",
])  # fmt: skip
words = st.sampled_from(["", "cannot be read: ", "no such file at ('", "url="])
rests = st.sampled_from(["", " refused", ": not found (404)", "'), see the log"])


def leaks(text: str) -> bool:
    return any(letter in text for letter in CAPITALS)


@given(words, st.sampled_from(CHAINS), st.sampled_from(SCHEMES), users, passwords, rests)
def test_no_password_is_left(before: str, chain: str, scheme: str, user: str, password: str, after: str) -> None:
    told = mask(f"{before}{chain}{scheme}://{user}:{password}@host:1/path{after}")
    assert not leaks(told)
    assert "host:1/path" in told
    assert told.startswith(f"{before}{chain}{scheme}://")
    assert mask(told) == told


@given(words, st.sampled_from(CHAINS), st.sampled_from(["https", "http", "git+https", "redis", "s3"]), tokens, rests)
def test_no_token_in_the_place_of_a_name_is_left(before: str, chain: str, scheme: str, token: str, after: str) -> None:
    for login in (token, f"{token}:", f"{token}:x-oauth-basic"):
        if login != token and "http" not in scheme:
            continue  # the name beside a password is told: it says whose login fails
        told = mask(f"{before}{chain}{scheme}://{login}@host/path{after}")
        assert not leaks(told)
        assert "@host/path" in told
        assert mask(told) == told


@given(words, st.sampled_from([*SCHEMES, "sqlite", "gs"]), names, values, st.booleans(), rests)
def test_no_secret_of_a_query_is_left(before: str, scheme: str, name: str, value: str, first: bool, after: str) -> None:
    query = f"?{name}={value}&x=1" if first else f"?x=1&{name}={value}"
    told = mask(f"{before}{scheme}://host/path{query}{after}")
    assert not leaks(told)
    assert "x=1" in told
    assert mask(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "0123abcd",
        "a",
        "pass",
        "a-b_",
        "http://",
        "//a:",
        "//a:@",
        "://a@",
        "key=",
        "?key",
        "'token",
        '"pwd": \'',
        "a.b@",
    ],
)
def test_long_texts_are_masked_in_a_time_that_grows_as_they_do(text: str) -> None:
    """A megabyte of base64, or of anything else, in an error's message: what grew with its square took hours."""
    begin = time.process_time()
    mask(text * (1_000_000 // len(text)))
    assert time.process_time() - begin < 20


@pytest.mark.parametrize(
    "name", ["api_key", "AWS_SESSION_TOKEN", "access_token", "--auth-token", "x-access_key", "PGPASSWORD"]
)
def test_a_setting_that_names_a_secret_is_masked(name: str) -> None:
    assert mask(f"env {name}=SECRET tokens=400") == f"env {name}=*** tokens=400"


@given(st.text(max_size=200))
def test_any_text_is_masked_once_and_for_all(text: str) -> None:
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b/c", "abfs://container@account.dfs.core.windows.net/x", "sftp://me@host/x", "file:///a@b/c",
        "http://127.0.0.1:5000/#/experiments/1/runs/2", "sqlite:////project/.shardline/mlflow/mlflow.db",
        "simplecache::s3://bucket/x?versionId=3", "me@example.org", "train.lr=0.003, 5 tokens: 12", "/data//x/y@1",
        '{"tokenizer": "bytes", "key": "f1"}', "git@github.com:owner/name.git", "redis+cluster://a:1,b:2",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgres://me:s3cret@h/db", "postgres://me:***@h/db"),
        ("https://ghp_s3cret@h/x", "https://***@h/x"),
        ("https://ghp_s3cret:x-oauth-basic@h/x", "https://***@h/x"),
        ("mysql://h/db?user=me&pwd=s3cret", "mysql://h/db?user=me&pwd=***"),
        ("simplecache::s3://k:s3cret@b/x", "simplecache::s3://k:***@b/x"),
        ("s3//k:s3cret@b/x", "s3//k:***@b/x"),  # meant as a URL
        ("https:/s3cret@b/x", "https:/***@b/x"),
        ("host=h password=s3cret dbname=d", "host=h password=*** dbname=d"),
        ("az://c/x?a=1;sig=s3cret", "az://c/x?a=1;sig=***"),
        ("{'key': 'k', 'secret': 's3cret'}", "{'key': 'k', 'secret': ***}"),
        ("{'aws_secret_access_key': 's3cret', 'x': 1}", "{'aws_secret_access_key': ***, 'x': 1}"),
        ('{"db.password": "it\'s3cret", "x": 1}', '{"db.password": ***, "x": 1}'),
        ("Authorization: Bearer s3cret", "Authorization: Bearer ***"),
        ("authorization=s3cret", "authorization=***"),
        ("{'Authorization': 'Basic s3cret', 'x': 1}", "{'Authorization': 'Basic ***', 'x': 1}"),
        ("lake.url='s3://b/x?sig=s3cret' is wrong", "lake.url='s3://b/x?sig=***' is wrong"),
    ],
)
def test_secrets_by_their_kinds(text: str, told: str) -> None:
    assert mask(text) == told


def test_parameters_whose_names_say_that_they_are_secrets() -> None:
    for name in ("train.args.api_key", "password", "train.args.hf_token", "model.args.client-secret"):
        assert mask_value(name, "s3cret") == "***"
    for name in ("curate.tokenizer", "evaluate.metrics.key", "stream.tokens", "train.lr"):
        assert mask_value(name, "plain") == "plain"


def test_links_have_no_login() -> None:
    assert without_login("http://me:p/w@d@h:5000/") == "http://h:5000/"
    assert without_login("https://s3cret@h/x?token=s3cret") == "https://h/x?token=***"


def test_errors_are_masked_when_they_are_made_and_cross_processes() -> None:
    assert "s3cret" not in str(LakeError("redis://:s3cret@h: refused"))
    stopped = pickle.loads(pickle.dumps(Interrupted("https://s3cret@h", 15)))
    assert (str(stopped), stopped.exit_code) == ("https://***@h", 143)
    wrong = pickle.loads(pickle.dumps(DigestError("s3://k:s3cret@b/x", "a", "b")))
    assert "s3cret" not in str(wrong)
    assert "s3://k:***@b/x: digest mismatch" in str(wrong)
