"""simulstream's own commands, live and from a list of wav files, write what a session writes."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import yaml
from websockets.sync.client import connect

from leapformer.tasks.speech.audio import read_audio
from leapformer.tasks.speech.simulstream import LeaPformerProcessor
from leapformer.tasks.speech.translator import Translator
from leapformer.tasks.speech.words import Words

PLACE = Path(sys.executable).parent
KIND = f"{LeaPformerProcessor.__module__}.{LeaPformerProcessor.__name__}"


@pytest.fixture(scope="module")
def served(learned, data, tmp_path_factory):
    """A configuration and a list of three wav files; what is to be written of them."""
    place = tmp_path_factory.mktemp("served")
    config = {
        "type": KIND,
        "model_path": str(learned[0] / "model"),
        "wait_k": 1,
        "speech_chunk_size": 0.08,
        "latency_unit": "word",
        "detokenizer_type": "simuleval",
    }
    (place / "processor.yaml").write_text(yaml.safe_dump(config))
    split = data.splits["test"]
    wavs = [split[i]["audio"] for i in range(3)]
    (place / "wavs.txt").write_text("".join(f"{wav}\n" for wav in wavs))
    session, texts = Translator.load(learned[0] / "model", 1).session(), []
    for wav in wavs:
        session.reset()
        texts.append(session.push(read_audio(wav)) + session.finish())
    assert all(texts)
    return place, texts


def run(place, tool, *words):
    done = subprocess.run([PLACE / tool, *words], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_inference_writes_what_a_session_writes(served):
    place, texts = served
    words = ("--speech-processor-config", "processor.yaml", "--wav-list-file", "wavs.txt")
    run(place, "simulstream_inference", *words, "--metrics-log-file", "metrics.jsonl")
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    written = [""] * 3
    for line in lines:
        if "generated_tokens" in line:
            assert not line["deleted_tokens"]
            written[line["id"]] += "".join(f" {word}" for word in line["generated_tokens"])
    assert [text.strip() for text in written] == texts
    heard = [line["total_audio_processed"] for line in lines if line.get("generated_tokens")]
    assert min(heard) < max(heard)
    words = ("--eval-config", "processor.yaml", "--log-file", "metrics.jsonl")
    assert "real_time_factor" in run(place, "simulstream_stats", *words)


def live(uri, wav):
    """What a server writes of a wav file that comes in pieces."""
    samples, rate = soundfile.read(wav, dtype="int16")
    text = ""
    with connect(uri) as server:
        server.send(json.dumps({"sample_rate": rate, "target_lang": "de", "source_lang": "en"}))
        for begin in range(0, len(samples), 640):
            server.send(samples[begin : begin + 640].tobytes())
        server.send(json.dumps({"end_of_stream": True}))
        while "end_of_processing" not in (said := json.loads(server.recv())):
            assert not said["deleted"]
            text += said["new"]
    return text.rstrip()


def test_the_server_serves(served):
    place, texts = served
    wavs = (place / "wavs.txt").read_text().splitlines()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "hostname": "127.0.0.1",
        "port": port,
        "pool_size": 2,
        "acquire_timeout": 10,
        "metrics": {"enabled": False, "filename": "unused.jsonl"},
    }
    (place / "server.yaml").write_text(yaml.safe_dump(config))
    words = ["--server-config", "server.yaml", "--speech-processor-config", "processor.yaml"]
    with (place / "server.log").open("w") as log:
        server = subprocess.Popen(
            [PLACE / "simulstream_server", *words], cwd=place, stdout=log, stderr=log
        )
    try:
        for _ in range(600):
            assert server.poll() is None, (place / "server.log").read_text()
            if "Serving websocket" in (place / "server.log").read_text():
                break
            time.sleep(0.1)
        uri = f"ws://127.0.0.1:{port}/"
        assert [live(uri, Path(wav)) for wav in wavs] == texts
        client = (
            "--uri",
            uri,
            "--wav-list-file",
            "wavs.txt",
            "--tgt-lang",
            "de",
            "--src-lang",
            "en",
        )
        run(place, "simulstream_wavs_client", *client)
    finally:
        server.kill()
        server.wait()


def test_a_pool_shares_its_model(served):
    place, texts = served
    config = SimpleNamespace(**yaml.safe_load((place / "processor.yaml").read_text()))
    LeaPformerProcessor.load_model(config)
    LeaPformerProcessor.load_model(config)
    one, two = LeaPformerProcessor(config), LeaPformerProcessor(config)
    assert one.session.translator is two.session.translator
    sounds = [read_audio(Path(wav)) for wav in (place / "wavs.txt").read_text().splitlines()]
    written = ["", ""]
    for begin in range(0, max(map(len, sounds)), 1000):
        for i, processor in enumerate((one, two)):
            written[i] += processor.process_chunk(sounds[i][begin : begin + 1000]).new_string
    for i, processor in enumerate((one, two)):
        written[i] += processor.end_of_stream().new_string
        assert processor.end_of_stream().new_string == ""
    assert [text.rstrip() for text in written] == texts[:2]
    one.clear()
    again = one.process_chunk(sounds[2]).new_tokens + one.end_of_stream().new_tokens
    assert one.tokens_to_string(again).rstrip() == texts[2]


def test_words_are_whole():
    words = Words()
    assert [words.push(text) for text in ("zwei", "und", "vier ", "", "z", "ehn hoch")] == [
        "",
        "",
        "zweiundvier",
        "",
        "",
        "zehn",
    ]
    assert words.finish("er ") == "hocher"
    assert words.push("x y") == "x"
