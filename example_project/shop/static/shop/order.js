"use strict";

const status_ = document.getElementById("status");
const stream = new EventSource(status_.dataset.events);
stream.addEventListener("status", (event) => {
  const { status } = JSON.parse(event.data);
  status_.textContent = status[0].toUpperCase() + status.slice(1);
  if (status === "delivered") stream.close();
});
