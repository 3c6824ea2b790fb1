"use strict";

setTimeout(() => location.reload(), 2000);
