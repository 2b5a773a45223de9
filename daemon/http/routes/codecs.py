"""Codecs: calibrations, sweeps, probes and certificates, streamed as they go; artifacts and what uses them."""

from typing import Any

from aiohttp import web

from daemon.http.jobs import accepted, stream_job
from daemon.http.route import Call, Route, message
from schemas.events.base import Message, Progress, Request
from schemas.events.codec import (
    CalibrateCodec,
    CancelCodecJob,
    CertifyCodec,
    CodecCalibrated,
    CodecCertified,
    CodecDecoded,
    CodecDropped,
    CodecGraduated,
    CodecInfo,
    CodecJobFailed,
    CodecJobs,
    CodecJobStarted,
    CodecList,
    CodecSelfTestFailed,
    CodecTrials,
    CodecWithdrawn,
    DecodeCodec,
    DropCodec,
    Frontier,
    GetCodec,
    GetFrontier,
    GetManifest,
    GraduateCodec,
    ListCodecJobs,
    ListCodecs,
    ListCodecTrials,
    ManifestReply,
    ProbeRowcount,
    SweepCodec,
    SweepFinished,
    SweepPointMeasured,
    SweepPointSkipped,
    TensorCalibrated,
    WithdrawCodec,
)
from schemas.http import NoParams
from schemas.http_codec import (
    ArtifactParams,
    CalibrateBody,
    CertifyBody,
    CodecJobParams,
    CodecTrialsParams,
    DecodeBody,
    FrontierParams,
    GraduateBody,
    ProbeBody,
    SweepBody,
    WaitParams,
    WithdrawBody,
)

FACTS = "lakehouse.evt.codec.>"
LAST = (CodecCalibrated, SweepFinished, CodecCertified, CodecSelfTestFailed, CodecJobFailed)


async def calibrate(call: Call[WaitParams, CalibrateBody]) -> web.StreamResponse:
    return await _job(call, message(CalibrateCodec, call.body))


async def sweep(call: Call[WaitParams, SweepBody]) -> web.StreamResponse:
    return await _job(call, message(SweepCodec, call.body))


async def probe(call: Call[WaitParams, ProbeBody]) -> web.StreamResponse:
    return await _job(call, message(ProbeRowcount, call.body))


async def certify(call: Call[WaitParams, CertifyBody]) -> web.StreamResponse:
    return await _job(call, message(CertifyCodec, call.body))


async def graduate(call: Call[NoParams, GraduateBody]) -> CodecGraduated:
    return await call.ask(message(GraduateCodec, call.body))


async def withdraw(call: Call[NoParams, WithdrawBody]) -> CodecWithdrawn:
    return await call.ask(message(WithdrawCodec, call.body))


async def decode(call: Call[NoParams, DecodeBody]) -> CodecDecoded:
    return await call.ask(message(DecodeCodec, call.body), long=True)


async def list_artifacts(call: Call[NoParams, None]) -> CodecList:
    return await call.ask(ListCodecs())


async def get_artifact(call: Call[ArtifactParams, None]) -> CodecInfo:
    return await call.ask(GetCodec(call.params.artifact))


async def get_manifest(call: Call[ArtifactParams, None]) -> ManifestReply:
    return await call.ask(GetManifest(call.params.artifact))


async def drop_artifact(call: Call[ArtifactParams, None]) -> CodecDropped:
    return await call.ask(DropCodec(call.params.artifact))


async def list_jobs(call: Call[NoParams, None]) -> CodecJobs:
    return await call.ask(ListCodecJobs())


async def cancel_job(call: Call[CodecJobParams, None]) -> CodecJobFailed:
    return await call.ask(CancelCodecJob(call.params.job, call.params.asked_by))


async def trials(call: Call[CodecTrialsParams, None]) -> CodecTrials:
    return await call.ask(message(ListCodecTrials, call.params))


async def frontier(call: Call[FrontierParams, None]) -> Frontier:
    return await call.ask(message(GetFrontier, call.params))


async def _job(call: Call[WaitParams, Any], order: Request[CodecJobStarted]) -> web.StreamResponse:
    if not call.params.wait:
        return accepted(await call.ask(order, long=True))
    return await stream_job(
        call,
        order,
        (FACTS,),
        _belongs,
        lambda said, started: isinstance(said, LAST) and said.job == started.job,
        lambda started: Progress(started.job, started.artifact or "", "waiting", 0),
    )


def _belongs(said: Message, started: CodecJobStarted) -> bool:
    return getattr(said, "job", None) == started.job


def _streamed(path: str, handler: Any, summary: str, *facts: Any) -> Route:
    items: Any = CodecJobStarted | Progress | CodecJobFailed
    for fact in facts:
        items = items | fact
    return Route("POST", path, handler, summary, media="application/x-ndjson", items=items, accepted=CodecJobStarted)


ROUTES = [
    _streamed("/codec/calibrate", calibrate, "Make an artifact of a target", TensorCalibrated, CodecCalibrated),
    _streamed("/codec/sweep", sweep, "Measure many codecs", SweepPointMeasured | SweepPointSkipped | SweepFinished),
    _streamed(
        "/codec/rowcount-probe",
        probe,
        "One codec as the rows that it is calibrated on grow",
        SweepPointMeasured | SweepPointSkipped | SweepFinished,
    ),
    _streamed("/codec/certify", certify, "Measure an artifact's function", CodecCertified | CodecSelfTestFailed),
    Route("POST", "/codec/graduate", graduate, "Put a certified artifact to use, of an index or a profile"),
    Route("POST", "/codec/withdraw", withdraw, "Take a codec out of use"),
    Route("POST", "/codec/decode", decode, "Write the checkpoint that an artifact stands for into a new folder"),
    Route("GET", "/codec/frontier", frontier, "Pareto of bits per weight against a measure"),
    Route("GET", "/codec/trials", trials, "Measured codecs, newest first"),
    Route("GET", "/codec/jobs", list_jobs, "Codec jobs under way"),
    Route("DELETE", "/codec/jobs/{job}", cancel_job, "End a codec job after the step that runs"),
    Route("GET", "/codec/artifacts", list_artifacts, "Artifacts, their certificates and what uses them"),
    Route("GET", "/codec/artifacts/{artifact}", get_artifact, "One artifact"),
    Route("GET", "/codec/artifacts/{artifact}/manifest", get_manifest, "What was done to every tensor, and why"),
    Route("DELETE", "/codec/artifacts/{artifact}", drop_artifact, "Remove an artifact that nothing uses"),
]
