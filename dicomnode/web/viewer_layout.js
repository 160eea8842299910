// Hanging protocol of the reading page for OHIF: source beside result at one slice, with the segmentation on it.
// The address names the series: #layout=LEFT,RIGHT,SEGMENTATION,SLICE with UIDs of series and an index from 0. The last
// two may be empty.
const dicomnodeLayout = (() => {
  const [left, right, mask, slice] = (location.hash.match(/layout=([0-9.,]+)/)?.[1] ?? "").split(",");
  const select = (uid) => ({
    seriesMatchingRules: [{ attribute: "SeriesInstanceUID", constraint: { equals: { value: uid } }, required: true }],
  });
  const viewport = (id, overlays) => ({
    viewportOptions: {
      viewportId: id,
      viewportType: "stack",
      toolGroupId: "default",
      initialImageOptions: slice ? { index: Number(slice), useOnce: true } : { preset: "middle", useOnce: true },
      syncGroups: [{ type: "imageSlice", id: "dicomnodeSlices", source: true, target: true }],
    },
    displaySets: [{ id }, ...overlays],
  });
  const selectors = Object.fromEntries(
    Object.entries({ left, right, mask }).filter(([, uid]) => uid).map(([id, uid]) => [id, select(uid)]),
  );
  const overlays = mask ? [{ id: "mask" }] : [];
  return {
    id: "@dicomnode/reading",
    name: "Source beside result",
    protocolMatchingRules: [],
    toolGroupIds: ["default"],
    numberOfPriorsReferenced: 0,
    displaySetSelectors: selectors,
    stages: [{
      name: "source beside result",
      viewportStructure: { layoutType: "grid", properties: { rows: 1, columns: 2 } },
      viewports: [viewport("left", []), viewport("right", overlays)],
    }],
  };
})();

/** Leave reports of this node out of the list of series: OHIF shows a black pane for measurements of segments. */
function hideReports({ displaySetsAdded }) {
  for (const each of displaySetsAdded) {
    if (each.Modality === "SR" && each.SeriesDescription?.startsWith("SYN ")) each.excludeFromThumbnailBrowser = true;
  }
}

/**
 * Show a map by its own window. OHIF multiplies the values of every map by 100 and shows them from 0 to 100: a map of
 * thousandths stays dark, one of thousands is all red.
 */
function fitMap({ displaySetService, cornerstoneViewportService }, { viewportInfo }) {
  const viewport = cornerstoneViewportService.getCornerstoneViewport(viewportInfo.getViewportId());
  for (const volumeId of viewport?.getAllVolumeIds?.() ?? []) {
    const map = displaySetService.getActiveDisplaySets().find(
      (each) => each.Modality === "PMAP" && volumeId.endsWith(each.displaySetInstanceUID));
    const window = [map?.instance?.SharedFunctionalGroupsSequence].flat()[0]?.FrameVOILUTSequence;
    const { WindowCenter: centre, WindowWidth: width } = [window].flat()[0] ?? {};
    if (!(Number(width) > 0)) continue;
    const [lower, upper] = [-0.5, 0.5].map((part) => 100 * (Number(centre) + part * Number(width)));
    const { colormap } = viewport.getProperties(volumeId) ?? {};
    viewport.setProperties({ voiRange: { lower, upper } }, volumeId);
    if (colormap) viewport.setProperties({ colormap }, volumeId); // its opacity follows the range
    viewport.render();
  }
}

/**
 * Leave out the VOI LUT Function (0028,1056) of images: OHIF reads the first letter of it and shows an error instead of
 * the image. It shows LINEAR then, the function of nearly all images; SIGMOID looks harder than the header asks.
 */
function leaveOutFunctions({ displaySetsAdded }) {
  const instances = displaySetsAdded.filter((each) => each.Modality !== "PMAP").flatMap((each) => each.instances ?? []);
  const groups = instances.flatMap((each) => [each.SharedFunctionalGroupsSequence, each.PerFrameFunctionalGroupsSequence]);
  const windows = groups.flat().flatMap((each) => each?.FrameVOILUTSequence ?? []);
  for (const each of [...instances, ...windows]) if (each.VOILUTFunction) each.VOILUTFunction = undefined;
}

/** Open a series at its middle slice where the address names no instance; OHIF's own layout opens at the first. */
function openAtMiddle({ hangingProtocolService }) {
  const protocol = hangingProtocolService.getProtocolById("default");
  const viewports = protocol.stages.flatMap((stage) => stage.viewports);
  for (const { viewportOptions } of [protocol.defaultViewport, ...viewports].filter(Boolean)) {
    viewportOptions.initialImageOptions = { custom: "sopInstanceLocation", defaultValue: { preset: "middle" } };
  }
}

/** Say on every viewport whether its series was acquired or is synthetic: side by side they look alike. */
function stateOrigin({ customizationService }) {
  const origin = {
    id: "dicomnodeOrigin",
    inheritsFrom: "ohif.overlayItem",
    label: "",
    title: "Acquired or synthetic",
    condition: ({ referenceInstance }) => Boolean(referenceInstance),
    contentF: ({ referenceInstance }) => nameOrigin(referenceInstance),
  };
  customizationService.setCustomizations({ "viewportOverlay.topLeft": { $push: [origin] } });
}

function nameOrigin({ ImageType, SeriesDescription }) {
  const types = [ImageType].flat();
  if (types.includes("SYNTHETIC") || SeriesDescription?.startsWith("SYN ")) return "SYNTHETIC: research use only";
  return types[0] === "DERIVED" ? "Received as a derived image" : "Acquired";
}

window.config.extensions.push({
  id: "@dicomnode/extension-reading",
  getHangingProtocolModule: () => [{ name: dicomnodeLayout.id, protocol: dicomnodeLayout }],
  onModeEnter({ servicesManager }) {
    const { displaySetService, cornerstoneViewportService } = servicesManager.services;
    openAtMiddle(servicesManager.services);
    stateOrigin(servicesManager.services);
    displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, hideReports);
    displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, leaveOutFunctions);
    const changed = cornerstoneViewportService.EVENTS.VIEWPORT_VOLUMES_CHANGED;
    // after OHIF's own settings, which wait for the next turn
    cornerstoneViewportService.subscribe(changed, (event) => setTimeout(() => fitMap(servicesManager.services, event)));
  },
});
