"""A certification: the artifact and what it was made of are brought here, its function is measured in the worker
process, and what comes of it is kept with the artifact."""

from msgspec.structs import replace

from actors.codec.certify.job import ColumnOrder, ModelOrder, SelfTestFailed, Verdict, certify_column, certify_model
from actors.codec.config import CodecConfig
from actors.codec.steps.work import Work
from actors.codec.store import ArtifactStore
from actors.codec.targets import NoTarget, Targets
from actors.codec.versions import versions
from actors.errors import Conflict
from actors.ports import Buckets, Clock, Registry
from schemas.certificate import Certificate, ColumnGate
from schemas.codec import VectorColumn, describe
from schemas.documents.codec import CodecDocument
from schemas.events.codec import CodecCertified, CodecSelfTestFailed, RunCertification


class Certifying:
    def __init__(
        self,
        registry: Registry,
        buckets: Buckets,
        targets: Targets,
        work: Work,
        clock: Clock,
        host: str,
        config: CodecConfig,
    ) -> None:
        self._registry = registry
        self._buckets = buckets
        self._targets = targets
        self._work = work
        self._clock = clock
        self._host = host
        self._config = config

    async def step(self, command: RunCertification) -> CodecCertified | CodecSelfTestFailed:
        """Raises NoTarget, CodecError and what the job raises; Conflict when the artifact changed meanwhile."""
        artifact = command.order.artifact
        found = await self._registry.load(CodecDocument, artifact)
        if found is None or found[0].manifest_sha256 != command.manifest_sha256:
            raise NoTarget(f"artifact {artifact!r} isn't the one any more that was to be certified", "certify it again")
        document, revision = found
        known = document.certificate
        if known is not None and document.certified_by == command.job:
            return CodecCertified(command.job, known)  # this step, before it could tell
        began = self._clock.monotonic()
        try:
            verdict = await self._verdict(command, document)
        except SelfTestFailed as error:
            return CodecSelfTestFailed(command.job, artifact, error.controls, str(error))
        certificate = Certificate(
            artifact=artifact,
            manifest_sha256=document.manifest_sha256,
            target=document.target,
            target_sha256=document.target_sha256,
            gate=verdict.gate,
            function=verdict.function,
            passed=not verdict.failures,
            failures=verdict.failures,
            self_test=verdict.controls,
            text=command.order.text or describe(document.target),
            text_sha256=verdict.text_sha256,
            seed=command.order.seed,
            versions=versions(models=not isinstance(document.target, VectorColumn)),
            took_s=self._clock.monotonic() - began,
            time=self._clock.now(),
            host=self._host,
        )
        await self._keep(document, revision, certificate, command)
        return CodecCertified(command.job, certificate)

    async def _verdict(self, command: RunCertification, document: CodecDocument) -> Verdict:
        order, target = command.order, document.target
        store = ArtifactStore(self._buckets, document.bucket, document.artifact)
        manifest, _ = await store.manifest()
        folder = await store.local(self._work.artifacts)
        async with self._targets.held(target, manifest.dataset_version) as local:
            if isinstance(target, VectorColumn):
                gate = order.gate if isinstance(order.gate, ColumnGate) else self._config.column
                metric = local.metric or "l2"
                asked = ColumnOrder(local.path, folder, metric, gate, order.prompts, order.seed)
                return await self._work.one(Verdict, command.job, document.artifact, certify_column, asked)
            if order.text is None:
                raise NoTarget("a model's certificate needs held-out text", "name a text file")
            text = await self._targets.path(order.text, "file")
            with self._work.folder() as work:
                model = ModelOrder(
                    reference=local.path,
                    artifact=folder,
                    text=text,
                    gate=order.gate,
                    causal_lm=self._config.causal_lm,
                    encoder=self._config.encoder,
                    prompts=order.prompts,
                    tokens=order.tokens,
                    seed=order.seed,
                    work=work,
                )
                return await self._work.one(Verdict, command.job, document.artifact, certify_model, model)

    async def _keep(
        self, document: CodecDocument, revision: int, certificate: Certificate, command: RunCertification
    ) -> None:
        """What the desk writes at the same time (a use) stays."""
        while True:
            kept = replace(document, certificate=certificate, certified_by=command.job)
            try:
                await self._registry.save(document.artifact, kept, expected=revision)
                return
            except Conflict:
                found = await self._registry.load(CodecDocument, document.artifact)
                if found is None or found[0].manifest_sha256 != command.manifest_sha256:
                    raise NoTarget(f"artifact {document.artifact!r} went while it was certified") from None
                document, revision = found
