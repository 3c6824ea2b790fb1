"""Settings of a site whose pages the processor limits: the shop's, with forms and templates, and the admin of them."""

from __future__ import annotations

import importlib.util
import os

from example_project.benchmarks.settings import *  # noqa: F403
from example_project.benchmarks.settings import INSTALLED_APPS as _APPS
from example_project.benchmarks.settings import MIDDLEWARE as _MIDDLEWARE

# What the shop's templates tell.
TOOLKIT = "BENCH_TOOLKIT" in os.environ
# One for all contenders: the visitors' session is signed with it.
SECRET_KEY = "of a site that nobody but its benchmark visits"
ROOT_URLCONF = "example_project.benchmarks.pages.urls"
STATIC_URL = "/static/"

INSTALLED_APPS = [
    *_APPS,
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "example_project.benchmarks.pages",
]
# A public application, with what it asks for.
if importlib.util.find_spec("todo"):
    INSTALLED_APPS += ["dal", "dal_select2", "django.contrib.sites", "todo"]
    SITE_ID = 1
MIDDLEWARE = [
    *_MIDDLEWARE,
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "example_project.shop.context_processors.toolkit",
            ]
        },
    }
]
