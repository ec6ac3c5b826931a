"""The HTTP interface of one model: what can be asked, and who may ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, Query, Request, Response, Security, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from latewood.core.version import __version__
from latewood.serve import schema
from latewood.serve.errors import declared, handlers
from latewood.serve.limits import Guard, Limits, check_images
from latewood.serve.pages import page
from latewood.serve.secret import matches
from latewood.serve.service import Service

if TYPE_CHECKING:
    from latewood.model.model import Model

Images = Annotated[list[UploadFile], File(min_length=1, max_length=schema.INPUTS, description="Image files.")]
Latest = Annotated[int, Query(ge=1, le=10_000, description="How many versions at most; the newest are given.")]


def make_app(
    model: Model, token: str, *, limits: Limits | None = None, hosts: Collection[str] | None = None, private: bool = False
) -> ASGIApp:
    """The ASGI application that serves ``model`` until its lifespan ends.

    ``token`` must be shown for whatever changes the model and, if ``private``, for whatever tells of it. With ``hosts``,
    requests for other host names are refused.
    """
    service = Service(model, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="Latewood",
        version=__version__,
        summary=f"A model of {model.kind} that goes on learning.",
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
        responses=declared(421, 500, 503),
    )
    for kind, handler in handlers().items():
        app.add_exception_handler(kind, handler)
    reading, changing = _router(token if private else None), _router(token)
    _add_open(app)
    _add_reading(reading, service, app)
    (_add_images if model.kind == "images" else _add_texts)(reading, changing, service)
    _add_changing(changing, service)
    app.include_router(reading)
    app.include_router(changing)
    return Guard(service.metrics.metered(app), service.limits, hosts)


def _router(token: str | None) -> APIRouter:
    """A router whose routes ask for the token, if there is one, before they read a body: FastAPI's own way reads it first."""
    if token is None:
        return APIRouter()
    needed = token

    class Locked(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def checked(request: Request) -> Response:
                if not matches(needed, request.headers.get("authorization")):
                    detail = "This needs the token of the service, as the header `Authorization: Bearer <token>`."
                    raise HTTPException(401, detail, {"www-authenticate": "Bearer"})
                return await handle(request)

            return checked

    scheme = HTTPBearer(auto_error=False, description="The token that the service printed when it started.")
    return APIRouter(route_class=Locked, dependencies=[Security(scheme)], responses=declared(401))


def _add_open(app: FastAPI) -> None:
    """What needs no token ever: it tells nothing of the model."""

    @app.get("/healthz", summary="Whether the service is up")
    async def healthz() -> schema.Health:
        return schema.Health(status="ok")

    @app.get("/", include_in_schema=False)
    def home() -> HTMLResponse:
        return page("page")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return page("docs")


def _add_reading(router: APIRouter, service: Service, app: FastAPI) -> None:
    @router.get("/model", summary="The model as it is now")
    def model() -> schema.Model:
        return service.state()

    @router.get("/versions", summary="The versions of the model", responses=declared(422))
    def versions(limit: Latest = 100) -> schema.Versions:
        return service.versions(limit)

    @router.get("/jobs/{id}", summary="How far a change of the model is", responses=declared(404, 422))
    async def job(id: str) -> schema.Job:
        return service.job(id)

    @router.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse)
    def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @router.get("/openapi.json", include_in_schema=False)
    def document() -> JSONResponse:
        return JSONResponse(app.openapi())


_PREDICT: dict[str, Any] = {
    "summary": "What the model takes each input for",
    "responses": declared(400, 408, 409, 413, 422, 504),
}
_LEARN: dict[str, Any] = {
    "summary": "Teach the model",
    "status_code": 202,
    "responses": declared(400, 408, 413, 422),
}


def _add_texts(reading: APIRouter, changing: APIRouter, service: Service) -> None:
    @reading.post("/predict", **_PREDICT)
    async def predict(body: schema.TextsToPredict) -> schema.Predictions:
        return await service.predict(body.texts, body.top)

    @changing.post("/learn", **_LEARN)
    async def learn(body: schema.TextsToLearn) -> schema.Job:
        return service.learn(body.texts, body.labels)


def _add_images(reading: APIRouter, changing: APIRouter, service: Service) -> None:
    async def read(images: Sequence[UploadFile]) -> list[bytes]:
        encoded = [await image.read() for image in images]
        await run_in_threadpool(check_images, encoded, service.limits)
        return encoded

    @reading.post("/predict", **_PREDICT)
    async def predict(images: Images, top: Annotated[schema.Top, Form()] = 1) -> schema.Predictions:
        return await service.predict(await read(images), top)

    @changing.post("/learn", **_LEARN)
    async def learn(images: Images, labels: Annotated[schema.Labels, Form()]) -> schema.Job:
        return service.learn(await read(images), labels)


def _add_changing(router: APIRouter, service: Service) -> None:
    @router.post(
        "/rollback", status_code=202, summary="Go back to an earlier version", responses=declared(400, 404, 408, 413, 422)
    )
    def rollback(body: schema.NumberedVersion) -> schema.Job:
        return service.rollback(body.number)

    @router.post("/accept", status_code=202, summary="Take the version that was held back", responses=declared(409))
    def accept() -> schema.Job:
        return service.accept()

    @router.post("/reject", status_code=202, summary="Drop the version that was held back", responses=declared(409))
    def reject() -> schema.Job:
        return service.reject()
