"""Model profiles: kept, activated and deactivated, searched with. A swap answers when it is done."""

from daemon.http.errors import HttpError
from daemon.http.route import Call, Route, message
from daemon.http.routes.indexes import scoped
from schemas.events.index import SearchResult
from schemas.events.profile import (
    ActivateProfile,
    CreateProfile,
    DeactivateProfile,
    DeleteProfile,
    GetProfile,
    GetSlot,
    ListProfiles,
    ProfileActivated,
    ProfileDeactivated,
    ProfileDeleted,
    ProfileInfo,
    ProfileList,
    ReplaceProfile,
    SlotInfo,
)
from schemas.http import NoParams
from schemas.http_profile import ProfileBody, ProfileParams, ProfileSearchBody, ReplaceProfileBody, SlotParams
from schemas.profile import ModelProfile


async def create_profile(call: Call[NoParams, ProfileBody]) -> ProfileInfo:
    return await call.ask(CreateProfile(message(ModelProfile, call.body)))


async def list_profiles(call: Call[NoParams, None]) -> ProfileList:
    return await call.ask(ListProfiles())


async def get_profile(call: Call[ProfileParams, None]) -> ProfileInfo:
    return await call.ask(GetProfile(call.params.profile))


async def replace_profile(call: Call[ProfileParams, ReplaceProfileBody]) -> ProfileInfo:
    named, given = call.params.profile, call.body.id
    if given not in (None, named):
        raise HttpError("invalid", f"the path names profile {named}, the body {given}", "leave the body's `id` out")
    return await call.ask(ReplaceProfile(message(ModelProfile, call.body, id=named)))


async def delete_profile(call: Call[ProfileParams, None]) -> ProfileDeleted:
    return await call.ask(DeleteProfile(call.params.profile))


async def activate_profile(call: Call[SlotParams, None]) -> ProfileActivated:
    return await call.ask(ActivateProfile(call.params.profile, call.params.wait), long=True)


async def deactivate_profile(call: Call[SlotParams, None]) -> ProfileDeactivated | SlotInfo:
    return await call.ask(DeactivateProfile(call.params.profile, call.params.wait), long=True)


async def active_profile(call: Call[NoParams, None]) -> SlotInfo:
    return await call.ask(GetSlot(look=True))


async def search_profile(call: Call[ProfileParams, ProfileSearchBody]) -> SearchResult:
    return await call.ask(scoped(call.params.profile, call.body.index, call.body))


ROUTES = [
    Route("POST", "/vectors/profiles", create_profile, "Make a model profile", status=201),
    Route("GET", "/vectors/profiles", list_profiles, "Every model profile, and which is active"),
    Route("GET", "/vectors/profiles/{profile}", get_profile, "One model profile"),
    Route("PUT", "/vectors/profiles/{profile}", replace_profile, "Replace a model profile as a whole"),
    Route("DELETE", "/vectors/profiles/{profile}", delete_profile, "Delete a profile that isn't active"),
    Route(
        "POST",
        "/vectors/profile/{profile}/activate",
        activate_profile,
        "Put its models into the GPU's memory; wait=false: 409 at once when another order runs",
    ),
    Route(
        "POST",
        "/vectors/profile/{profile}/deactivate",
        deactivate_profile,
        "Take its models out of memory; the slot when it wasn't active",
    ),
    Route("GET", "/vectors/profile/active", active_profile, "The slot, after a look at the model servers"),
    Route("POST", "/vectors/profile/{profile}/search", search_profile, "The k nearest rows, with a profile's rights"),
]
