"""Which scope each call needs: the one table for gRPC and the rules for HTTP. Pure.

What no line names needs ``admin``, so that a call that somebody forgets here is closed, not open.
"""

from typing import Literal, TypeAlias

from upt_server.access.tokens import Scope

Need: TypeAlias = Scope | Literal["open"]

_OPEN_INFERENCE = "/inference.GRPCInferenceService"
GRPC_NEEDS: dict[str, Need] = {
    "/grpc.health.v1.Health/Check": "open",
    "/grpc.health.v1.Health/List": "open",
    "/grpc.health.v1.Health/Watch": "metadata",  # never ends, so it holds a place
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "metadata",
    "/upt.v1.Inference/Predict": "predict",
    "/upt.v1.Inference/PredictStream": "predict",
    "/upt.v1.Inference/ListAdapters": "metadata",
    "/upt.v1.Inference/GetAdapter": "metadata",
    "/upt.v1.Admin/Load": "admin",
    "/upt.v1.Admin/Unload": "admin",
    "/upt.v1.Admin/Pin": "admin",
    "/upt.v1.Admin/Preload": "admin",
    "/upt.v1.Admin/ListResident": "admin",
    "/upt.v1.Admin/GetStatus": "admin",
    "/upt.v1.Admin/Drain": "admin",
    f"{_OPEN_INFERENCE}/ServerLive": "open",
    f"{_OPEN_INFERENCE}/ServerReady": "open",
    f"{_OPEN_INFERENCE}/ServerMetadata": "metadata",
    f"{_OPEN_INFERENCE}/ModelReady": "metadata",
    f"{_OPEN_INFERENCE}/ModelMetadata": "metadata",
    f"{_OPEN_INFERENCE}/ModelConfig": "metadata",
    f"{_OPEN_INFERENCE}/ModelStatistics": "metadata",
    f"{_OPEN_INFERENCE}/RepositoryIndex": "metadata",
    f"{_OPEN_INFERENCE}/ModelInfer": "predict",
    f"{_OPEN_INFERENCE}/ModelStreamInfer": "predict",
    f"{_OPEN_INFERENCE}/RepositoryModelLoad": "admin",
    f"{_OPEN_INFERENCE}/RepositoryModelUnload": "admin",
}
PAGE = "/page/"
_OPEN_PATHS = ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")


def need_of_rpc(method: str) -> Need:
    """Return what ``/package.Service/Method`` needs."""
    return GRPC_NEEDS.get(method, "admin")


def need_of_path(verb: str, path: str) -> Need:
    """Return what an HTTP request needs: reading is metadata, answers are asked for by POST."""
    if verb in ("GET", "HEAD"):
        return "open" if path in _OPEN_PATHS or _is_asset(path) else "metadata"
    is_v2_infer = path.startswith("/v2/models/") and path.endswith("/infer")
    if verb == "POST" and (path == "/v1/predict" or is_v2_infer):
        return "predict"
    # Triton's index of the repository is read by POST
    if verb == "POST" and path == "/v2/repository/index":
        return "metadata"
    return "admin"


def _is_asset(path: str) -> bool:
    """Tell the page's own files, which are alike everywhere, from what it shows of a store."""
    return path.startswith(PAGE) and not path.startswith(f"{PAGE}data/")
