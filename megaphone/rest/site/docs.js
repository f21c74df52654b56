// Shows the description of the API. `validatorUrl: null` keeps it from asking another host.
"use strict";

SwaggerUIBundle({ url: "openapi.json", dom_id: "#ui", deepLinking: true, validatorUrl: null });
