// Search in a folder: a browser starts no Worker from file:, so a hidden frame takes the part of one.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html><title>Search</title>";
      this.started = new Promise((resolve) => {
        frame.addEventListener("load", () => {
          const scope = frame.contentWindow;
          const load = (source) =>
            new Promise((loaded, failed) => {
              const script = frame.contentDocument.createElement("script");
              Object.assign(script, { src: source, onload: loaded, onerror: failed });
              frame.contentDocument.body.append(script);
            });
          scope.importScripts = async (...sources) => {
            for (const source of sources) await load(source);
          };
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          load(url).then(() => resolve(scope));
        });
      });
      document.body.append(frame);
    }

    postMessage(data) {
      this.started.then((scope) => scope.dispatchEvent(new scope.MessageEvent("message", { data })));
    }
  };
}
